"""The callback that writes rollouts as pages to read, every few iterations.

A score says that a policy got better; ``rollouts/index.html`` shows what it writes now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from research_rl.agents import Rollout
from research_rl.trainers.callbacks.base import (
    RunCallback,
    cosmetic,
    learned_iterations,
    positive,
    rollouts_of,
    run_folder,
)
from research_rl.trainers.progress import finished_iterations
from research_rl.trainers.viewer import RolloutFiles


class RolloutLog(RunCallback):
    """Writes rollouts as text, as a page of HTML and as rows of JSON, into ``rollouts/``.

    Reads ``train_rollouts`` and ``train_advantages`` (one number a rollout) of the module after
    training batches, ``val_rollouts`` after validations and ``test_rollouts`` after tests. A file
    is numbered by the iterations that the policy had learned from when it wrote them.

    Args:
        every_n_steps: iterations between two looks at training; every validation is written.
        num_questions: questions of a training batch to write, each with its whole group.
        num_val_questions: questions of a validation or test to write.
        folder: where to, below the run's folder.

    Raises:
        ValueError: a number is not positive.
    """

    label = "rollouts"

    def __init__(
        self,
        every_n_steps: int = 10,
        num_questions: int = 8,
        num_val_questions: int = 100,
        folder: str = "rollouts",
    ) -> None:
        super().__init__()
        self.every_n_steps = positive("every_n_steps", every_n_steps)
        self.num_questions = positive("num_questions", num_questions)
        self.num_val_questions = positive("num_val_questions", num_val_questions)
        self.folder = folder
        self._files: RolloutFiles | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the files of another fit."""
        self._files = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove what an earlier run wrote behind the point where this one goes on."""
        if trainer.is_global_zero:
            with cosmetic("clear the rollouts"):
                self._open(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Write every n iterations, the first one included."""
        step = finished_iterations(trainer) - 1
        if step % self.every_n_steps == 0 and trainer.is_global_zero:
            rollouts = rollouts_of(pl_module, "train_rollouts")
            advantages = rollouts_of(pl_module, "train_advantages")
            self._write(trainer, pl_module, "train", step, rollouts, advantages)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the validation of a fit, or of the command validate."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            rollouts = rollouts_of(pl_module, "val_rollouts")
            self._write(trainer, pl_module, "val", learned_iterations(trainer, pl_module), rollouts)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what the command test saw."""
        if trainer.is_global_zero:
            rollouts = rollouts_of(pl_module, "test_rollouts")
            self._write(
                trainer, pl_module, "test", learned_iterations(trainer, pl_module), rollouts
            )

    def _write(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        split: str,
        step: int,
        rollouts: Sequence[Rollout],
        advantages: Sequence[float] | None = None,
    ) -> None:
        with cosmetic("write the rollouts"):
            files = self._open(trainer)
            if trainer.state.fn != "fit":
                files.forget(split, step)
            limit = self.num_questions if split == "train" else self.num_val_questions
            decode = getattr(getattr(pl_module, "policy", None), "decode", None)
            files.write(split, step, rollouts, advantages, limit, decode)
            self.written = files.index

    def _open(self, trainer: pl.Trainer) -> RolloutFiles:
        if self._files is None:
            self._files = RolloutFiles(run_folder(trainer) / self.folder)
            if trainer.state.fn == "fit":
                self._files.begin(finished_iterations(trainer) if trainer.ckpt_path else 0)
        return self._files
