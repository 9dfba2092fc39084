"""A run that goes on with other options of its optimizer: they are in force in the next update."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from doubles import training
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR

from research_rl.trainers.checkpoint.resumed import KEY
from research_rl.trainers.health.remedies import scale_learning_rate

STEPS = 3
Options = dict[str, Any]


class Watch(pl.Callback):
    """Notes what the optimizer holds before each update, and the steps of its moments."""

    def __init__(self) -> None:
        self.seen: list[Options] = []
        self.steps: list[int] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        group = optimizer.param_groups[0]
        self.seen.append({name: value for name, value in group.items() if name != "params"})
        state = next(iter(optimizer.state.values()), {})
        self.steps.append(int(state.get("step", 0)))


def adamw(**options: Any) -> Callable[..., Optimizer]:
    return lambda parameters: AdamW(parameters, **{"lr": 1e-3, **options})


def run(
    folder: Path,
    policy: Path,
    steps: int,
    start: Path | None = None,
    last: pl.Callback | None = None,
    **arguments: Any,
) -> Watch:
    """Train to ``steps``, from a checkpoint if there is one, and leave another."""
    watch = Watch()
    callbacks = [watch, *([last] if last else [])]
    trainer = training.trainer(folder, steps, limit_val_batches=0, callbacks=callbacks)
    arguments.setdefault("optimizer", adamw())
    trainer.fit(training.module(policy, **arguments), training.Data(), ckpt_path=start)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return watch


def begun(folder: Path, policy: Path, **arguments: Any) -> Path:
    run(folder, policy, STEPS, **arguments)
    return folder / f"{STEPS}.ckpt"


@pytest.fixture(scope="module")
def plain(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of three steps with AdamW and no scheduler."""
    return begun(tmp_path_factory.mktemp("plain"), policy)


def without_record(checkpoint: Path, folder: Path) -> Path:
    """The same checkpoint as an older version wrote it."""
    state = torch.load(checkpoint, weights_only=True)
    del state[KEY]
    torch.save(state, folder / "older.ckpt")
    return folder / "older.ckpt"


@pytest.mark.parametrize("older", [False, True])
def test_changed_options_are_in_force_and_the_moments_stay(
    plain: Path, policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, older: bool
) -> None:
    start = without_record(plain, tmp_path) if older else plain
    changed: Options = {"lr": 1e-6, "weight_decay": 0.3, "betas": (0.8, 0.9)}
    with caplog.at_level(logging.WARNING):
        watch = run(tmp_path, policy, STEPS + 1, start, optimizer=adamw(**changed))
    assert {name: watch.seen[0][name] for name in changed} == changed
    assert watch.steps[0] == STEPS
    (said,) = (m for m in caplog.messages if "goes on with other options of its optimizer" in m)
    assert "lr: 0.001 -> 1e-06" in said
    assert "weight_decay: 0.01 -> 0.3" in said
    assert "learning rate of the next update is 1e-06" in said


def test_nothing_is_said_or_changed_where_nothing_is_another(
    plain: Path, policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = run(tmp_path, policy, STEPS + 1, plain)
    assert watch.seen[0]["lr"] == 1e-3
    assert "goes on with" not in caplog.text


class Lower(pl.Callback):
    """What a guard does to the learning rate."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scale_learning_rate(trainer, 0.5)


@pytest.mark.parametrize("changed", [{}, {"weight_decay": 0.3}])
def test_what_a_guard_made_of_the_learning_rate_stays(
    policy: Path, tmp_path: Path, changed: Options
) -> None:
    start = begun(tmp_path, policy, last=Lower())
    watch = run(tmp_path, policy, STEPS + 1, start, optimizer=adamw(**changed))
    assert watch.seen[0]["lr"] == 5e-4
    assert watch.seen[0]["weight_decay"] == changed.get("weight_decay", 0.01)


def test_a_new_learning_rate_is_the_one_that_was_asked_for_after_a_guard(
    policy: Path, tmp_path: Path
) -> None:
    start = begun(tmp_path, policy, last=Lower())
    assert run(tmp_path, policy, STEPS + 1, start, optimizer=adamw(lr=1e-5)).seen[0]["lr"] == 1e-5


def linear(total: int) -> Callable[[Optimizer], Any]:
    return lambda optimizer: LinearLR(optimizer, 1.0, 0.0, total_iters=total)


def parts(steps: int) -> Callable[[Optimizer], Any]:
    return lambda optimizer: SequentialLR(
        optimizer,
        [LinearLR(optimizer, 0.1, 1.0, total_iters=2), CosineAnnealingLR(optimizer, steps)],
        [2],
    )


SCHEDULES: dict[str, Callable[[Optimizer], Any] | None] = {
    "none": None,
    "linear 10": linear(10),
    "linear 20": linear(20),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 8),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 0.9**step),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.01, total_steps=9),
    "one cycle higher": lambda optimizer: OneCycleLR(optimizer, 0.02, total_steps=9),
    "parts": parts(8),
    "longer parts": parts(9),
}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("linear 10", "linear 20"),
        ("linear 10", "none"),
        ("none", "linear 10"),
        ("linear 10", "cosine"),
        ("linear 10", "parts"),
        ("parts", "longer parts"),
        ("parts", "linear 10"),
        ("one cycle", "one cycle higher"),
        ("linear 10", "lambda"),
    ],
)
def test_a_changed_schedule_goes_on_as_if_it_had_always_been_there(
    policy: Path, tmp_path: Path, before: str, now: str, caplog: pytest.LogCaptureFixture
) -> None:
    start = begun(tmp_path, policy, lr_scheduler=SCHEDULES[before])
    whole = run(tmp_path, policy, STEPS + 2, lr_scheduler=SCHEDULES[now])
    caplog.clear()
    went_on = run(tmp_path, policy, STEPS + 2, start, lr_scheduler=SCHEDULES[now])
    expected = [(one["lr"], one["betas"]) for one in whole.seen[STEPS:]]
    assert [(one["lr"], one["betas"]) for one in went_on.seen] == expected
    assert went_on.steps[0] == STEPS
    assert "lr_scheduler" in caplog.text
    assert f"next update is {expected[0][0]:g}" in caplog.text


@pytest.mark.parametrize(
    ("schedule", "older"),
    [
        ("linear 10", True),
        ("one cycle", True),
        ("parts", True),
        ("cosine", False),
        ("lambda", False),
        ("one cycle", False),
        ("parts", False),
    ],
)
def test_an_unchanged_schedule_goes_on_in_silence(
    policy: Path, tmp_path: Path, schedule: str, older: bool, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"lr_scheduler": SCHEDULES[schedule]}
    start = begun(tmp_path, policy, **arguments)
    start = without_record(start, tmp_path) if older else start
    whole = run(tmp_path, policy, STEPS + 1, **arguments)
    caplog.clear()
    assert run(tmp_path, policy, STEPS + 1, start, **arguments).seen[0] == whole.seen[STEPS]
    assert "goes on with" not in caplog.text


@pytest.mark.parametrize("older", [False, True])
def test_a_new_learning_rate_moves_the_whole_schedule(
    policy: Path, tmp_path: Path, older: bool
) -> None:
    start = begun(tmp_path, policy, lr_scheduler=linear(10))
    start = without_record(start, tmp_path) if older else start
    new = {"lr_scheduler": linear(10), "optimizer": adamw(lr=1e-5)}
    whole = run(tmp_path, policy, STEPS + 1, **new)
    went_on = run(tmp_path, policy, STEPS + 1, start, **new)
    assert went_on.seen[0]["lr"] == whole.seen[STEPS]["lr"]


def test_a_second_resume_from_what_went_on_is_unchanged(
    plain: Path, policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, policy, STEPS + 1, plain, optimizer=adamw(lr=1e-6))
    caplog.clear()
    second = tmp_path / f"{STEPS + 1}.ckpt"
    watch = run(tmp_path, policy, STEPS + 2, second, optimizer=adamw(lr=1e-6))
    assert watch.seen[0]["lr"] == 1e-6
    assert "goes on with" not in caplog.text


class SaveFirst(pl.Callback):
    """Saves before the options are in force, as a validation that was owed does."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(f"{trainer.default_root_dir}/first.ckpt")


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("schedule", ["none", "linear 10"])
def test_a_checkpoint_says_what_its_own_state_was_made_with(
    plain: Path, policy: Path, tmp_path: Path, schedule: str, older: bool
) -> None:
    start = without_record(plain, tmp_path) if older else plain
    new: Options = {"optimizer": adamw(lr=1e-6), "lr_scheduler": SCHEDULES[schedule]}
    expected = run(tmp_path, policy, STEPS + 1, start, last=SaveFirst(), **new).seen[0]["lr"]
    went_on = run(tmp_path, policy, STEPS + 1, tmp_path / "first.ckpt", **new)
    assert went_on.seen[0]["lr"] == expected < 1e-5


def test_another_class_of_optimizer_is_refused(plain: Path, policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be .*AdamW, whose moments .* got .*SGD"):
        run(tmp_path, policy, STEPS + 1, plain, optimizer=lambda p: SGD(p, lr=1e-3))


def test_a_schedule_that_is_over_is_refused(plain: Path, policy: Path, tmp_path: Path) -> None:
    short = {"lr_scheduler": lambda optimizer: OneCycleLR(optimizer, 0.01, total_steps=2)}
    with pytest.raises(ValueError, match=r"must reach beyond the 3 optimizer steps"):
        run(tmp_path, policy, STEPS + 1, plain, **short)
