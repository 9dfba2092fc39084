"""Learning in float16, an overflow, and where the states of the optimizer are meanwhile."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from doubles import training
from torch import nn

from research_rl.agents import CachedEngine, Rollout
from research_rl.trainers import module as training_module
from research_rl.trainers import updater
from research_rl.trainers.algorithms import GRPO, TurnGRPO
from research_rl.trainers.credit import Credit, Price
from research_rl.trainers.learner import Learner
from research_rl.trainers.settings import Updates
from research_rl.trainers.updater import LossScale, place_states


def updates(dtype: Any) -> Updates:
    return Updates(group_size=4, micro_batch_size=3, max_grad_norm=None, compute_dtype=dtype)


def moved(folder: Path, policy: Path, dtype: Any, steps: int = 1, **arguments: Any) -> torch.Tensor:
    """How far a fit moves the weights."""
    trained = training.fit(
        folder, policy, steps, updates=updates(dtype), algorithm=GRPO(kl_coef=0.0), **arguments
    )
    before = training.weights(training.fit(folder / "start", policy, 0))
    return training.weights(trained) - before


def logged(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_float16_learns_what_float32_learns(tmp_path: Path, policy: Path) -> None:
    exact = moved(tmp_path / "fp32", policy, None)
    half = moved(tmp_path / "fp16", policy, "float16")
    rough = moved(tmp_path / "bf16", policy, "bfloat16")

    gaps = [(other - exact).norm() / exact.norm() for other in (half, rough)]
    assert gaps[0] < 0.01
    assert gaps[0] < gaps[1] / 2, "float16 has three bits more"
    assert logged(tmp_path / "fp16", "train/loss_scale") == [2.0**16]
    for name in ("train/loss", "train/grad_norm", "train/entropy"):
        assert logged(tmp_path / "fp16", name) == pytest.approx(
            logged(tmp_path / "fp32", name), rel=0.02
        )
    assert not logged(tmp_path / "bf16", "train/loss_scale")


def test_an_overflow_leaves_a_step_out_and_halves_the_scale(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("research_rl.trainers.updater._START", 2.0**60)

    assert not moved(tmp_path / "run", policy, "float16", steps=1).any()
    trained = training.fit(tmp_path / "more", policy, 3, updates=updates("float16"))

    skipped = trained.loss_scale.skipped
    assert skipped >= 2
    assert trained.loss_scale.value == 2.0 ** (60 - skipped)


def test_a_scale_of_one_is_not_halved() -> None:
    scale = LossScale("float16")
    scale.value = 1.0
    assert scale.unscale([], torch.tensor(torch.inf)), "Updater.clip raises"


def test_a_run_that_goes_on_in_float16_begins_with_its_scale() -> None:
    assert not LossScale().state_dict(), "nothing to go on with"
    half = LossScale("float16")
    half.load_state_dict(LossScale("bfloat16").state_dict())
    half.load_state_dict({"value": 1.0, "good": 0, "skipped": 0})  # as was saved once
    assert half.value == 2.0**16
    half.load_state_dict({"value": 1.0, "good": 3, "skipped": 16})
    assert half.value == 1.0


def test_good_steps_double_it_and_a_resumed_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("research_rl.trainers.updater._PATIENCE", 3)
    scale = LossScale("float16")
    weight = torch.nn.Parameter(torch.ones(2))
    for _ in range(2):
        weight.grad = torch.full((2,), scale.value)
        assert scale.unscale([weight], torch.tensor(1.0))
        assert weight.grad.tolist() == [1.0, 1.0]

    resumed = LossScale("float16")
    resumed.load_state_dict(scale.state_dict())
    assert resumed.unscale([], torch.tensor(1.0))
    assert resumed.value == 2.0**17
    resumed.load_state_dict({})
    assert resumed.value == 2.0**17, "a checkpoint of before has none"


@pytest.mark.parametrize("dtype", [None, "bfloat16", "auto"])
def test_other_dtypes_have_no_scale(dtype: str | None) -> None:
    scale = LossScale(dtype)
    scale.load_state_dict({"value": 8.0, "good": 1, "skipped": 0})
    assert scale.value == 1.0
    assert scale.unscale([], torch.tensor(torch.inf))


# -- where the optimizer's states are

PARKED = Updates(group_size=4, micro_batch_size=3, park_optimizer=True)


@pytest.mark.parametrize("park", [False, True])
def test_states_move_and_counts_stay(park: bool) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    place_states([optimizer], Updates(park_optimizer=park), model, torch.device("meta"))
    found = [(k, v.device.type) for s in optimizer.state.values() for k, v in s.items()]
    there = "meta" if park else "cpu"
    assert sorted(set(found)) == [("exp_avg", there), ("exp_avg_sq", there), ("step", "cpu")]


def test_parked_states_and_shards_exclude_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updater, "is_sharded", lambda _: True)
    place_states([], Updates(), nn.Linear(1, 1))
    with pytest.raises(ValueError, match="park_optimizer must be off with weights in shards"):
        place_states([], PARKED, nn.Linear(1, 1))


class Stages(pl.Callback):
    """In which order states are parked, rollouts sampled and updates made; with two devices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, replaces: bool = False) -> None:
        self.seen: list[str] = []
        self.replaces = replaces

        def recorded(optimizers: Any, updates: Any, model: Any, device: Any = None) -> None:
            held = any(one.state for one in optimizers)
            self.seen.append("learn" if device is not None else "park" if held else "nothing")

        for place in (training_module, updater):
            monkeypatch.setattr(place, "place_states", recorded)

    def engine(self, policy: Any) -> CachedEngine:
        class Watched(CachedEngine):
            def run(_, *args: Any, **settings: Any) -> Any:  # noqa: N805
                self.seen.append("sample")
                return super().run(*args, **settings)

        return Watched(policy)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.replaces:
            pl_module.weights_replaced()


def parked_fit(folder: Path, policy: Path, steps: int, stages: Stages, **more: Any) -> Any:
    trained = training.module(
        policy, updates=PARKED, engine=stages.engine, optimizer=torch.optim.AdamW
    )
    run = training.trainer(folder, steps, limit_val_batches=0, callbacks=[stages])
    run.fit(trained, training.Data(), **more)
    return run


def test_a_resumed_run_samples_with_parked_states(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Stages(monkeypatch)
    parked_fit(tmp_path, policy, 1, first).save_checkpoint(tmp_path / "one.ckpt")
    assert first.seen == ["nothing", "sample", "learn", "park"], "a new optimizer has no states"
    resumed = Stages(monkeypatch)
    parked_fit(tmp_path, policy, 2, resumed, ckpt_path=tmp_path / "one.ckpt", weights_only=False)
    assert resumed.seen == ["park", "sample", "learn", "park"]


def test_states_that_were_replaced_are_parked(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(monkeypatch, replaces=True)
    parked_fit(tmp_path, policy, 1, stages)
    assert stages.seen[-2:] == ["park", "park"]


@pytest.mark.parametrize(("ahead", "told"), [(0, 0), (1, 1)])
def test_parking_beside_rollouts_ahead_is_told(
    ahead: Any, told: int, tmp_path: Path, policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = Updates(4, micro_batch_size=3, park_optimizer=True, async_rollouts=ahead)
    with caplog.at_level(logging.WARNING):
        training.fit(tmp_path, policy, 1, updates=both)
    assert sum("park_optimizer" in r.getMessage() for r in caplog.records) == told


class Tithe(Price):
    """Charges every second rollout a tenth."""

    def charges(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [0.1 * (row % 2) for row in range(len(rollouts))]


def thinned(number: int | None) -> Updates:
    return Updates(4, micro_batch_size=3, downsample_to=number)


def test_what_is_left_out_costs_no_pass_and_has_no_advantage(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    real = Learner.portions
    monkeypatch.setattr(
        Learner, "portions", lambda self, batch: rows.append(len(batch)) or real(self, batch)
    )
    # the advantages of PODS are those of the rollouts that are kept
    trained = training.fit(tmp_path, policy, 1, updates=thinned(2), algorithm=GRPO(kl_coef=0.0))

    worth = torch.tensor(trained.train_advantages).view(2, 4)
    rewards = torch.tensor([r.reward.value for r in trained.train_rollouts]).view(2, 4)
    varied = torch.tensor([len(set(group.tolist())) > 1 for group in rewards])
    assert varied.any()
    worth, rewards = worth[varied], rewards[varied]
    assert max(rows) == 2 * len(worth), "two of each group of four that varies"
    assert ((worth == 0).sum(1) == 2).all()
    assert worth.sum(1).abs().max() < 1e-4
    assert torch.equal(rewards.gather(1, worth.argmax(1)[:, None])[:, 0], rewards.amax(1))
    assert torch.equal(rewards.gather(1, worth.argmin(1)[:, None])[:, 0], rewards.amin(1))


def test_down_sampling_to_the_whole_group_changes_nothing(tmp_path: Path, policy: Path) -> None:
    usual, whole = (
        training.fit(tmp_path / str(number), policy, 1, updates=thinned(number))
        for number in (None, 4)
    )
    assert torch.equal(training.weights(usual), training.weights(whole))
    assert usual.train_advantages == whole.train_advantages


def test_a_price_is_told_of_all_rollouts_and_decides_which_are_kept(
    tmp_path: Path, policy: Path
) -> None:
    trained = training.fit(
        tmp_path,
        policy,
        1,
        updates=thinned(2),
        price=Tithe(),
        env=training.env(training.ConstantReward()),
    )
    assert logged(tmp_path, "train/price") == pytest.approx([0.05])
    assert logged(tmp_path, "train/charged") == [0.5]
    for start in (0, 4):
        group = trained.train_advantages[start : start + 4]
        assert [worth > 0 for worth in group].count(True) == 1
        assert [worth < 0 for worth in group].count(True) == 1
        assert max(group[1::2]) <= 0 <= min(group[::2]), "every second one has paid"


class Seen(Credit):
    """Keeps the rewards that it is shown, and credits no turn."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def turn_rewards(self, rollouts: Sequence[Rollout], policy: Any) -> list[list[float]]:
        self.values = [rollout.reward.value for rollout in rollouts]
        return [[0.0] * len(rollout.turns) for rollout in rollouts]


@pytest.mark.parametrize("price", [None, Tithe()])
def test_credit_is_made_of_what_was_paid(tmp_path: Path, policy: Path, price: Price | None) -> None:
    seen = Seen()
    rule = TurnGRPO(kl_coef=0.0)
    trained = training.fit(tmp_path, policy, 1, algorithm=rule, credit=seen, price=price)
    rewards = [rollout.reward.value for rollout in trained.train_rollouts]
    due = [0.0 if price is None else 0.1 * (row % 2) for row in range(len(rewards))]
    assert seen.values == pytest.approx(
        [value - tithe for value, tithe in zip(rewards, due, strict=True)]
    )
    assert all(value * 7 == pytest.approx(round(value * 7)) for value in rewards), (
        "as they were paid"
    )
