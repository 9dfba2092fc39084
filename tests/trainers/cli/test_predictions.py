"""``research predict`` leaves a whole file or none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from research_rl.trainers.cli.fit import ResearchCLI


def predict(root: Path, rows: list[dict[str, Any]], rank: int = 0, ranks: int = 1) -> None:
    """The command behind its model and its configuration."""
    cli: Any = object.__new__(ResearchCLI)
    cli.subcommand = "predict"
    cli.trainer = SimpleNamespace(
        predict=lambda ckpt_path: [rows], global_rank=rank, world_size=ranks
    )
    cli._root = lambda: root
    cli.predict()


def test_one_row_a_question_and_one_file_a_rank(tmp_path: Path) -> None:
    row = {"id": "1", "text": "é and half a pair \udc80\u2028"}
    predict(tmp_path, [row, row])
    predict(tmp_path, [row], rank=1, ranks=2)
    lines = (tmp_path / "predict" / "predictions.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == [row, row]
    names = sorted(path.name for path in (tmp_path / "predict").iterdir())
    assert names == ["predictions.1.jsonl", "predictions.jsonl"]


def test_a_full_disk_keeps_the_predictions_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    predict(tmp_path, [{"id": "before"}])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        predict(tmp_path, [{"id": "now"}])
    (file,) = (tmp_path / "predict").iterdir()
    assert json.loads(file.read_text()) == {"id": "before"}
