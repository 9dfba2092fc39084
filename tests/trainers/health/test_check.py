"""SignalCheck speaks of a dead run in log, folder and checkpoint, and is silent in a live one."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from doubles import training
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from research_rl.agents import collect_rollouts
from research_rl.envs.rewards import DefaultReward
from research_rl.envs.types import Reward
from research_rl.trainers import module as modules
from research_rl.trainers.algorithms import Reinforce, TurnGRPO
from research_rl.trainers.checkpoint.export import learned_nothing
from research_rl.trainers.credit import Credit, Price
from research_rl.trainers.health.check import (
    SAME_WEIGHTS,
    SIGNAL_JOURNAL,
    NothingToLearnError,
    SignalCheck,
    fingerprint,
    likely_causes,
)
from research_rl.trainers.settings import Updates


class Nothing(DefaultReward):
    """Pays nobody, and finds the same fault with everybody."""

    def __call__(self, segments: Any, question: Any) -> Reward:
        """See RewardFunction."""
        return Reward(0.0, format_error="no <answer> ... </answer>")


class ByPlace(Credit):
    """Credits the turns of each rollout by its place."""

    def turn_rewards(self, rollouts: Any, policy: Any) -> list[list[float]]:
        """See Credit."""
        return [[float(place)] * len(one.turns) for place, one in enumerate(rollouts)]


class ByLength(Price):
    """Charges by what was written."""

    def charges(self, rollouts: Any) -> list[float]:
        """See Price."""
        return [len(one.sequence.response_ids) / 100 for one in rollouts]


def fit(folder: Path, check: SignalCheck, dead: bool, steps: int = 2, **settings: Any) -> Any:
    policy = training.checkpoint(folder / "policy")
    module = training.module(policy, **settings)
    if dead:
        module.env_config.reward = Nothing()
        module._make_optimizer = lambda p: torch.optim.SGD(p, lr=1e-2)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        default_root_dir=folder,
        max_steps=steps,
        callbacks=[check],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    trainer.fit(module, training.Data())
    return trainer


def test_a_dead_run_is_told_once_and_written_down_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "research_rl"):
        trainer = fit(tmp_path, SignalCheck(), dead=True)
    told = [r.getMessage() for r in caplog.records if "signal check" in r.getMessage()]
    assert len(told) == 1, told[-1]
    assert "do two rewards differ" in told[0]
    rows = [json.loads(line) for line in (tmp_path / SIGNAL_JOURNAL).read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
    assert {v["name"] for v in rows[0]["verdicts"]} >= {"no_difference", "zero_gradient"}
    assert any(SAME_WEIGHTS in r.getMessage() for r in caplog.records)
    trainer.save_checkpoint(tmp_path / "dead.ckpt")
    assert learned_nothing(tmp_path / "dead.ckpt")


def test_a_live_run_is_not_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "research_rl"):
        trainer = fit(tmp_path, SignalCheck(), dead=False)
    assert SAME_WEIGHTS not in caplog.text
    trainer.save_checkpoint(tmp_path / "live.ckpt")
    assert not learned_nothing(tmp_path / "live.ckpt")


def test_it_stops_where_it_is_asked_to(tmp_path: Path) -> None:
    with pytest.raises(NothingToLearnError, match="do two rewards differ"):
        fit(tmp_path, SignalCheck("stop"), dead=True)
    assert (tmp_path / SIGNAL_JOURNAL).is_file()


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({}, False),
        ({"algorithm": Reinforce(kl_coef=0.0)}, True),
        ({"price": ByLength()}, True),
        ({"algorithm": TurnGRPO(kl_coef=0.0), "credit": ByPlace()}, True),
    ],
)
def test_only_a_run_that_cannot_learn_is_told_that_rewards_are_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], learns: bool
) -> None:
    def paid_by_question(questions: Any, *arguments: Any) -> Any:
        found = collect_rollouts(questions, *arguments)
        names = sorted({one.question.id for one in found})
        return [replace(r, reward=Reward(float(names.index(r.question.id)))) for r in found]

    monkeypatch.setattr(modules, "collect_rollouts", paid_by_question)
    fit(tmp_path, SignalCheck(), False, steps=1, **settings)
    journal = tmp_path / SIGNAL_JOURNAL
    rows = journal.read_text().splitlines() if journal.is_file() else []
    told = {verdict["name"] for row in rows for verdict in json.loads(row)["verdicts"]}
    assert ("no_difference" not in told) is learns


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fingerprint_sees_one_bit(dtype: torch.dtype) -> None:
    layer = nn.Linear(7, 5).to(dtype)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    with torch.no_grad():
        layer.weight[3, 2] = torch.nextafter(layer.weight[3, 2].float(), torch.tensor(9.0)) + 0.01
    assert fingerprint(layer) != before


def test_a_fingerprint_sees_two_weights_exchanged() -> None:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[1.0, 2.0]])
        before = fingerprint(layer)
        layer.weight[:] = torch.tensor([[2.0, 1.0]])
    assert fingerprint(layer) != before


def test_frozen_weights_do_not_count() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    before = fingerprint(layer)
    with torch.no_grad():
        layer.bias += 1
    assert fingerprint(layer) == before


def test_likely_causes_are_those_of_the_run() -> None:
    healthy = SimpleNamespace(engine=SimpleNamespace(), updates=Updates())
    assert likely_causes(healthy) == []
    sick = SimpleNamespace(
        engine=SimpleNamespace(dtype=torch.bfloat16, holds_weights=True),
        updates=Updates(compute_dtype="bfloat16"),
        policy=nn.Sequential(nn.Dropout(0.1)),
    )
    assert [c.split()[-1] for c in likely_causes(sick)] == [
        "over",
        "bfloat16",
        "bfloat16",
        "dropout",
    ]
    mixed = SimpleNamespace(updates=Updates(), trainer=SimpleNamespace(precision="bf16-mixed"))
    assert likely_causes(mixed) == ["the learner computes in bfloat16"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"action": "cry"}, "warn or stop"), ({"every_n_steps": 0}, "at least 1")],
)
def test_bad_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SignalCheck(**settings)


def test_a_resumed_run_speaks_of_no_iteration_twice(tmp_path: Path) -> None:
    """What a killed run has written behind its checkpoint is made again, and stands there once."""
    journal = tmp_path / SIGNAL_JOURNAL
    journal.write_text('{"iteration": 7, "verdicts": []}\n{"iterat')  # of a run before, and torn
    fit(tmp_path, SignalCheck(), dead=True)
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
