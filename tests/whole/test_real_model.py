"""The benchmark of a pretrained model: with a tiny model always, with a real one when asked to.

RESEARCH_REAL_MODEL=FOLDER names a Hugging Face folder of a causal model; RESEARCH_REAL_DATA=FOLDER
questions and corpora in FlashRAG's layout, for the rung of real questions.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from doubles import training
from doubles.places import ROOT

REAL = os.environ.get("RESEARCH_REAL_MODEL")
DATA = os.environ.get("RESEARCH_REAL_DATA")
SMALL = (
    *("--demonstrations", "16", "--questions", "2", "--"),
    *("--data.batch_size", "2", "--model.updates.group_size", "2", "--data.limit_val", "2"),
    *("--model.sampling.max_response_tokens", "96"),
)


def climb(model: str | Path, out: Path, *more: str, iterations: int = 1) -> str:
    """Run the benchmark and return what it printed."""
    more = ("--iterations", str(iterations), *more)
    command = [sys.executable, str(ROOT / "benchmarks" / "real_model.py"), "--model", str(model)]
    run = subprocess.run(
        [*command, "--out", str(out), *more, *SMALL], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


def rows_of(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_rung_is_climbed_and_a_second_call_repeats_nothing(tmp_path: Path) -> None:
    model = training.checkpoint(tmp_path / "model", max_position_embeddings=1024)

    said = climb(model, tmp_path / "out")
    folder = tmp_path / "out" / "world-seed-1"
    report = rows_of(folder)

    for name, rows in report["rows"].items():
        assert len({row["id"] for row in rows}) == 4, "two questions of 1 and 2 hops"
        assert len(rows) == (16 if "sampled" in name else 4), "four answers where they are sampled"
    assert set(report["rows"]) == {
        *("after SFT", "after SFT, sampled", "after GRPO", "after GRPO, sampled"),
        *("after GRPO, closed book", "after GRPO, naive RAG"),
    }
    assert [test["n"] for test in report["paired"].values()] == [4, 4], "greedy and sampled"
    assert "paired permutation test" in said
    assert (folder / "curve.png").is_file()
    seconds = (folder / "seconds.json").read_text(encoding="utf-8")

    again = climb(model, tmp_path / "out")

    assert "research " not in again, "every stage is finished"
    assert (folder / "seconds.json").read_text(encoding="utf-8") == seconds
    assert rows_of(folder) == report

    climb(model, tmp_path / "out", iterations=2)

    with (folder / "grpo" / "metrics.csv").open(encoding="utf-8") as file:
        rewards = [row["step"] for row in csv.DictReader(file) if row["train/reward"]]
    assert rewards == ["0", "1"], "it went on behind the first iteration"
    assert (folder / "exam" / "iteration-1" / "after GRPO.jsonl").is_file()
    assert (folder / "exam" / "after GRPO.jsonl").is_file()


@pytest.mark.skipif(not REAL, reason="RESEARCH_REAL_MODEL=FOLDER runs it on a real model")
def test_a_real_model_samples_as_it_learns(tmp_path: Path) -> None:
    assert REAL
    climb(REAL, tmp_path)

    with (tmp_path / "world-seed-1" / "grpo" / "metrics.csv").open(newline="") as file:
        mismatch = [row["train/mismatch_mean"] for row in csv.DictReader(file)]

    found = [float(value) for value in mismatch if value]
    assert found
    assert max(found) < 0.1, "nats between sampled and recomputed log-probs"


@pytest.mark.skipif(not (REAL and DATA), reason="RESEARCH_REAL_DATA=FOLDER names real questions")
def test_real_questions_are_asked_of_a_real_model(tmp_path: Path) -> None:
    assert REAL
    assert DATA
    climb(REAL, tmp_path, "--rungs", "questions", "--data", DATA)
    folder = tmp_path / "questions-seed-1"

    ids = {
        part: {json.loads(line)["id"] for line in (folder / "data" / f"{part}.jsonl").open()}
        for part in ("shown", "train", "val", "test")
    }

    assert sum(map(len, ids.values())) == len(set.union(*ids.values())), "the parts are disjoint"
    assert len(rows_of(folder)["rows"]["after GRPO"]) == 2
