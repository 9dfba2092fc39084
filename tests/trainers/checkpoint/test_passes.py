"""A run stopped behind the last batch of a pass over its data goes on with the next pass."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from research_rl.trainers.checkpoint.callback import RunCheckpoint
from research_rl.trainers.data import QuestionLoader

pytestmark = pytest.mark.filterwarnings("ignore")
PASSES = 3
Seen = list[tuple[Any, ...]]


class Line(pl.LightningModule):
    """One weight; notes each batch that it is trained on, and each validation that is whole."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = seen

    def training_step(self, batch: list[int], batch_idx: int) -> torch.Tensor:
        self.seen.append(("train", self.trainer.current_epoch, batch_idx, *batch))
        return self.weight.sum()

    def validation_step(self, batch: list[int], batch_idx: int) -> None:
        self.log("val/x", float(self.trainer.global_step), batch_size=1)

    def on_validation_epoch_end(self) -> None:
        self.seen.append(("val", self.trainer.global_step))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stop(pl.Callback):
    """Sends SIGTERM at the first call of a hook."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._send)
        self._sent = False

    def _send(self, *args: Any) -> None:
        if not self._sent:
            self._sent = True
            os.kill(os.getpid(), signal.SIGTERM)


def fit(
    folder: Path, seen: Seen, batches: int, stop: str | None, every: dict[str, Any], **limit: Any
) -> pl.Trainer:
    """Train on passes of so many batches, on from ``last.ckpt`` if there is one."""
    model = limit.pop("model", Line)
    saver = RunCheckpoint("val/x", dirpath=str(folder), every_n_iterations=every.pop("save", None))
    trainer = pl.Trainer(
        **limit,
        **every,
        accelerator="cpu",
        num_sanity_val_steps=0,
        logger=False,
        callbacks=[saver, *([Stop(stop)] if stop else [])],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train, val = QuestionLoader(range(2 * batches), 2, seed=1), QuestionLoader([0], 1)
    last = folder / "last.ckpt"
    trainer.fit(model(seen), train, val, ckpt_path=str(last) if last.exists() else None)
    return trainer


NO_VALIDATION = {"limit_val_batches": 0}
EVERY_SECOND = {"val_check_interval": 2, "check_val_every_n_epoch": None}


@pytest.mark.parametrize("every", [NO_VALIDATION, EVERY_SECOND, {}], ids=["none", "second", "pass"])
@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize("by", ["max_steps", "max_epochs"])
def test_a_stop_behind_any_batch_loses_and_repeats_nothing(
    by: str, batches: int, every: dict[str, Any], tmp_path: Path
) -> None:
    limit = {by: PASSES * (batches if by == "max_steps" else 1)}
    whole: Seen = []
    fit(tmp_path / "whole", whole, batches, None, dict(every), **limit)
    seen: Seen = []
    for _ in range(PASSES * batches - 1):
        with pytest.raises(SIGTERMException):
            fit(tmp_path / "cut", seen, batches, "on_train_batch_start", dict(every), **limit)
    fit(tmp_path / "cut", seen, batches, None, dict(every), **limit)
    assert seen == whole
    assert sum(one[0] == "train" for one in seen) == PASSES * batches


@pytest.mark.parametrize("hook", ["on_validation_batch_start", "on_validation_end"])
@pytest.mark.parametrize("by", ["max_steps", "max_epochs"])
def test_a_stop_in_the_validation_behind_a_pass_makes_it_once(
    hook: str, by: str, tmp_path: Path
) -> None:
    limit = {by: PASSES * (2 if by == "max_steps" else 1)}
    whole: Seen = []
    fit(tmp_path / "whole", whole, 2, None, {}, **limit)
    seen: Seen = []
    with pytest.raises(SIGTERMException):
        fit(tmp_path / "cut", seen, 2, hook, {}, **limit)
    fit(tmp_path / "cut", seen, 2, None, {}, **limit)
    assert seen == whole


@pytest.mark.parametrize("every", [NO_VALIDATION, {}], ids=["none", "pass"])
@pytest.mark.parametrize("by", ["max_steps", "max_epochs"])
def test_a_run_that_was_over_goes_on_with_the_next_pass(
    by: str, every: dict[str, Any], tmp_path: Path
) -> None:
    one = 2 if by == "max_steps" else 1
    whole: Seen = []
    fit(tmp_path / "whole", whole, 2, None, dict(every), **{by: PASSES * one})
    seen: Seen = []
    for limit in (one, one, PASSES * one):  # the second finds nothing to do
        fit(tmp_path / "parts", seen, 2, None, dict(every), **{by: limit})
    assert seen == whole


class Crash(Line):
    """Fails in its third batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 2:
            raise OSError("the machine went away")


def test_last_is_renewed_behind_the_last_batch_of_a_pass(tmp_path: Path) -> None:
    every = {**NO_VALIDATION, "save": 1}
    with pytest.raises(OSError, match="went away"):
        fit(tmp_path, [], 1, None, every, model=Crash, max_epochs=PASSES)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
