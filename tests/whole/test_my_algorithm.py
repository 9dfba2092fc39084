"""The example of a rule of one's own: its numbers, and a run that names it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from doubles import tiny_run
from doubles.places import ROOT

from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.cli.fit import run

EXAMPLES = ROOT / "examples"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, with the example on the path as if it lay there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("sys.argv", ["research"])
    return tmp_path


def test_ranks_by_hand(folder: Path) -> None:
    import my_algorithm  # type: ignore[import-not-found]

    rows = Batch(
        input_ids=torch.zeros(5, 3, dtype=torch.long),
        attention_mask=torch.ones(5, 3, dtype=torch.bool),
        loss_mask=torch.ones(5, 2, dtype=torch.bool),
        sampled_logprobs=torch.zeros(5, 2),
        rewards=torch.tensor([0.1, 1.0, 0.0, 0.1, 0.5]),
        groups=torch.tensor([0, 0, 0, 0, 1]),
    )
    found = my_algorithm.RankGRPO().advantages(rows)
    assert found.tolist() == [0.0, 0.75, -0.75, 0.0, 0.0]


def test_a_run_names_it(folder: Path) -> None:
    config = tiny_run.write_config(folder)
    chosen = ["--model.algorithm", "my_algorithm.RankGRPO", "--model.algorithm.clip_high", "0.3"]
    trained = run(["fit", "--config", str(config), *chosen, "--trainer.max_steps", "1"])
    assert type(trained.model.algorithm).__module__ == "my_algorithm"
    assert "my_algorithm" in sys.modules
    written = yaml.safe_load((folder / "runs/tiny/config.yaml").read_text())
    assert written["model"]["algorithm"]["init_args"]["clip_high"] == 0.3
