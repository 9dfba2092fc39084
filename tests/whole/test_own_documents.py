"""From a folder of files to demonstrations, by the commands alone; every one can be repeated."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from doubles.tiny_run import write_config

from research_rl.envs.synthetic import SyntheticWorld, write_pages
from research_rl.trainers.cli import main


def research(monkeypatch: pytest.MonkeyPatch, *args: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["research", *map(str, args)])
    main()


def test_the_page_is_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_pages(SyntheticWorld(60), Path("pages"))
    steps = (
        ("corpus", "build", "pages", "--out", "own/corpus.jsonl", "--quiet"),
        ("index", "build", "--corpus", "own/corpus.jsonl", "--out", "own/index", "--quiet"),
        (
            *("questions", "make", "--index", "own/index", "--out", "own/questions", "--quiet"),
            *("--count", "40", "--top-k", "1"),
        ),
        (
            *("data", "audit", "--questions", "own/questions/test.jsonl", "--index", "own/index"),
            *("--train", "own/questions/train.jsonl", "--top-k", "1"),
        ),
        (
            *("collect", "--config", config, "--from", "gold", "--out", "own/demos"),
            *("--questions", "own/questions/train.jsonl", "--model.env.index", "own/index"),
            *("--model.env.top_k", "1", "--model.env.max_searches", "3"),
        ),
    )
    for step in steps:
        research(monkeypatch, *step)
    said = capsys.readouterr().out
    assert "are kept" in said
    audited = json.loads(Path("own/questions/test.audit/audit.json").read_text())
    assert audited["numbers"]["ceiling"] == 1.0
    assert audited["buckets"]["one search"] == 0, "no question is answered by one search"
    card = json.loads(Path("own/demos/card.json").read_text())
    asked = Path("own/questions/train.jsonl").read_text().count("\n")
    assert card["demonstrations"] == asked, card
    rollout = json.loads(Path("own/demos/rollouts.jsonl").read_text().splitlines()[0])
    assert len(rollout["queries"]) == 2
