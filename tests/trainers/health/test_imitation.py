"""Demonstrations that are all paid the same can be imitated: neither check nor guard objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import training
from doubles.sample_rollouts import rollout

from research_rl.trainers.demonstrations.data import DemonstrationDataModule
from research_rl.trainers.demonstrations.module import SFTModule
from research_rl.trainers.health import monitor as health
from research_rl.trainers.health.check import SIGNAL_JOURNAL, NothingToLearnError, SignalCheck
from research_rl.trainers.health.guard import JOURNAL, CollapseGuard
from research_rl.trainers.health.monitor import HealthMonitor


@pytest.fixture
def demonstrations(tmp_path: Path) -> Path:
    """Four of the same reward, whose F1 nobody has measured."""
    file = tmp_path / "demonstrations.jsonl"
    rows = [rollout("wrong", f"Who is the boss of number {n} ?").to_row() for n in range(4)]
    file.write_text("".join(json.dumps(row | {"reward": 1.0}) + "\n" for row in rows))
    return file


def imitate(folder: Path, policy: Path, demonstrations: Path, rate: float, *callbacks: Any) -> Any:
    module = SFTModule(
        training.module(policy).policy_config,
        training.env(training.ConstantReward()),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate),
    )
    data = DemonstrationDataModule(str(demonstrations), batch_size=2)
    run = training.trainer(folder, 2, limit_val_batches=0, callbacks=list(callbacks))
    run.fit(module, data)
    return module


def test_equal_rewards_end_no_imitation(
    tmp_path: Path, policy: Path, demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "health_picture", lambda _, target: target)
    guard = CollapseGuard(roll_back=True, patience=1)
    folder = tmp_path / "run"
    callbacks = [SignalCheck("stop"), HealthMonitor(0), guard]
    module = imitate(folder, policy, demonstrations, 0.1, *callbacks)
    assert module.iteration == 2
    assert not (folder / SIGNAL_JOURNAL).exists()
    assert not (folder / JOURNAL).exists()


def test_imitation_without_a_gradient_ends(
    tmp_path: Path, policy: Path, demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "research_rl.trainers.algorithms.sft.SFT.loss",
        lambda _, out, batch: (0.0 * out.logprobs.sum(), {}),
    )
    with pytest.raises(NothingToLearnError, match="the gradient of the update is 0"):
        imitate(tmp_path / "run", policy, demonstrations, 0.1, SignalCheck("stop"))


def test_a_demonstration_that_is_too_long_ends_no_run(
    tmp_path: Path, policy: Path, demonstrations: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = json.loads(demonstrations.read_text().splitlines()[0])
    row |= {"question_id": "long", "results": ["x" * 100_000]}
    with demonstrations.open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert imitate(tmp_path / "run", policy, demonstrations, 0.1).iteration == 2
    assert "1 of 5 demonstrations are left out" in caplog.text
    assert "long (" in caplog.text
