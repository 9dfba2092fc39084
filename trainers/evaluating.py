"""The part of the Lightning module that answers held-out questions, and writes metrics down."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from research_rl.agents.types import Rollout
from research_rl.envs.types import Question
from research_rl.trainers.evaluation import average, measure, prediction_row
from research_rl.trainers.ranks import gather

_BAR = tuple(f"{part}/{name}" for part in ("train", "val") for name in ("reward", "f1", "searches"))


class EvaluatingModule(pl.LightningModule):
    """Validation, test and prediction; a subclass answers the questions."""

    def __init__(self) -> None:
        super().__init__()
        self.iteration = 0
        """Batches of questions that the policy has learned from."""
        self.val_rollouts: list[Rollout] = []
        self.test_rollouts: list[Rollout] = []
        """Of the latest evaluation, this rank's share."""

    @abstractmethod
    def _answer(self, questions: list[Question]) -> list[Rollout]:
        """Play one episode for each held-out question."""

    def on_validation_epoch_start(self) -> None:
        """Forget the rollouts of the validation before."""
        self.val_rollouts = []

    def validation_step(self, questions: list[Question], batch_idx: int) -> None:
        """Answer validation questions."""
        self.val_rollouts += self._answer(questions)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all questions."""
        self._log(prefixed("val", means_of(self.val_rollouts)))

    def on_test_epoch_start(self) -> None:
        """Forget the rollouts of the test before."""
        self.test_rollouts = []

    def test_step(self, questions: list[Question], batch_idx: int) -> None:
        """Answer test questions."""
        self.test_rollouts += self._answer(questions)

    def on_test_epoch_end(self) -> None:
        """Log the means over all questions."""
        self._log(prefixed("test", means_of(self.test_rollouts)))

    def predict_step(self, questions: list[Question], batch_idx: int) -> list[dict[str, Any]]:
        """Return one row for each question: its prediction, scores and text."""
        return [prediction_row(rollout) for rollout in self._answer(questions)]

    def _log(self, metrics: dict[str, float]) -> None:
        """Show metrics in the progress bar and to callbacks, and write them down.

        In training they are written here, at the number of iterations that the policy has learned
        from: Lightning would put a validation at the iteration before, and would repeat what only
        some iterations have, such as the F1 of questions with three hops.
        """
        trainer: Any = self.trainer
        fitting = trainer.state.fn == TrainerFn.FITTING
        for name, value in metrics.items():
            self.log(name, value, prog_bar=name in _BAR, logger=not fitting)
        due = trainer.validating or (self.iteration + 1) % max(trainer.log_every_n_steps, 1) == 0
        if fitting and due and not trainer.sanity_checking:
            for logger in self.loggers:
                logger.log_metrics(metrics, self.iteration)
                logger.save()


def means_of(rollouts: list[Rollout], by_hop: Collection[str] | None = None) -> dict[str, float]:
    """Return the mean measures over the rollouts of all ranks; every rank must ask."""
    return average(gather([measure(rollout) for rollout in rollouts]), by_hop)


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """Return the values with ``prefix/`` before their names."""
    return {f"{prefix}/{name}": value for name, value in values.items()}
