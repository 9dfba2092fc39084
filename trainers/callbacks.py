"""What a run leaves to look at and to use: the curve, the rollouts, the exported policy.

Everything lands in the run's folder, beside ``metrics.csv``. A picture or a page that cannot be
written is a warning and never ends a training; only rank zero writes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_info

from research_rl.agents.types import Rollout
from research_rl.trainers.export import ExportError, save_policy
from research_rl.trainers.plots import learning_curve
from research_rl.trainers.progress import RunProgressBar, finished_iterations
from research_rl.trainers.rollout_files import RolloutFiles

log = logging.getLogger(__name__)


class RunCallback(pl.Callback):
    """A callback that writes into the run's folder; the first says at the end what lies where."""

    label = ""
    """What the file is, in the line at the end."""

    def __init__(self) -> None:
        self.written: Path | None = None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Name what a fit left, in one line for all callbacks together."""
        every: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        ours = [c for c in every if isinstance(c, RunCallback)]
        if stage == "fit" and ours and ours[0] is self:
            found = [f"{c.label} {c.written}" for c in ours if c.written is not None]
            found += [f"checkpoint {path}" for path in _checkpoints(trainer)]
            if found:
                rank_zero_info("To look at: %s", ", ".join(found))


class LearningCurve(RunCallback):
    """Draws the learning curve while training, from the ``metrics.csv`` of the run's CSVLogger.

    Args:
        every_n_steps: iterations between two drawings; each validation is drawn too.
        filename: of the picture, beside ``metrics.csv``.

    Raises:
        ValueError: ``every_n_steps`` is not positive.
    """

    label = "curve"

    def __init__(self, every_n_steps: int = 10, filename: str = "learning_curve.png") -> None:
        super().__init__()
        self.every_n_steps = _positive("every_n_steps", every_n_steps)
        self.filename = filename

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Say at once if there will be no curve."""
        if stage == "fit" and trainer.is_global_zero and _csv_logger(trainer) is None:
            log.warning("no learning curve will be drawn: it needs a CSVLogger; add one to logger")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the half-drawn pictures of a run that was killed."""
        if trainer.is_global_zero:
            with cosmetic("clear half-drawn curves"):
                for path in run_folder(trainer).glob(f".{self.filename}.*.partial"):
                    path.unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Draw every n iterations."""
        if finished_iterations(trainer) % self.every_n_steps == 0:
            self._draw(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the validation of a fit."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._draw(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the whole run."""
        self._draw(trainer)

    def _draw(self, trainer: pl.Trainer) -> None:
        logger = _csv_logger(trainer)
        if logger is None or not trainer.is_global_zero:
            return
        with cosmetic("draw the learning curve"):
            logger.save()
            metrics = Path(logger.log_dir) / "metrics.csv"
            if metrics.is_file():
                self.written = learning_curve(metrics, metrics.with_name(self.filename))


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
        self.every_n_steps = _positive("every_n_steps", every_n_steps)
        self.num_questions = _positive("num_questions", num_questions)
        self.num_val_questions = _positive("num_val_questions", num_val_questions)
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
            self._write(trainer, pl_module, "val", _learned(trainer, pl_module), rollouts)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what the command test saw."""
        if trainer.is_global_zero:
            rollouts = rollouts_of(pl_module, "test_rollouts")
            self._write(trainer, pl_module, "test", _learned(trainer, pl_module), rollouts)

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


class ExportPolicy(RunCallback):
    """Writes the policy as a plain Hugging Face folder when training has ended.

    It is the policy of the last iteration; ``research export`` makes one of any checkpoint.

    Args:
        folder: below the run's folder, or an absolute path; what is there is replaced.
    """

    label = "policy"

    def __init__(self, folder: str = "policy") -> None:
        super().__init__()
        self.folder = folder

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the folder whole or not at all.

        Raises:
            ExportError: the disk does not take it; the checkpoints are untouched.
        """
        module: Any = pl_module
        with getattr(module, "whole_policy", nullcontext)():
            if not trainer.is_global_zero:
                return
            target = run_folder(trainer) / self.folder
            try:
                save_policy(module.policy, target)
            except ExportError as error:
                raise ExportError(
                    f"{error}, then run `research export --ckpt ... --out ...` on the last "
                    "checkpoint"
                ) from error
            self.written = target


@contextmanager
def cosmetic(what: str) -> Iterator[None]:
    """Turn any failure inside into a warning with its reason: training goes on without it."""
    try:
        yield
    except Exception as error:
        log.warning("could not %s: %s: %s", what, type(error).__name__, error, exc_info=True)


def _learned(trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
    """Return how many iterations the policy has learned from, also where it was only loaded."""
    return int(getattr(pl_module, "iteration", finished_iterations(trainer)))


def rollouts_of(pl_module: pl.LightningModule, name: str) -> list[Any]:
    """Return what the module keeps of its last batch.

    Raises:
        TypeError: it keeps no such thing.
    """
    found = getattr(pl_module, name, None)
    if not isinstance(found, list):
        raise TypeError(
            f"RolloutLog reads {name}, a list that {type(pl_module).__name__} must set after each "
            f"batch, got {type(found).__name__}; use ReSearchModule, or leave RolloutLog out"
        )
    return found


def run_folder(trainer: pl.Trainer) -> Path:
    """Return where ``metrics.csv`` lies; without a CSVLogger, the trainer's root folder."""
    logger = _csv_logger(trainer)  # not trainer.log_dir: it waits for the other ranks
    return Path(logger.log_dir if logger else trainer.default_root_dir)


def _csv_logger(trainer: pl.Trainer) -> CSVLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, CSVLogger)), None)


def _checkpoints(trainer: pl.Trainer) -> list[str]:
    found = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    return [path for c in found if (path := c.best_model_path or c.last_model_path)]


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


__all__ = ["ExportPolicy", "LearningCurve", "RolloutLog", "RunCallback", "RunProgressBar"]
