"""The callback that writes a run's checkpoints, ``best.ckpt`` and ``last.ckpt``.

Each is written between two iterations. So a resumed run repeats no half-done iteration and gives
the same losses, rollouts and weights as one that was not stopped.
"""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info

from research_rl.trainers.checkpoint.exam import Exam, differences, exam_of
from research_rl.trainers.checkpoint.files import (
    AtomicCheckpointIO,
    CheckpointError,
    find_checkpoint,
    remove_checkpoint,
)
from research_rl.trainers.checkpoint.stopping import StopSignal
from research_rl.trainers.lightning_internals import at_next_pass, validates_next

__all__ = [
    "AtomicCheckpointIO",
    "CheckpointError",
    "RunCheckpoint",
    "find_checkpoint",
    "remove_checkpoint",
]

log = logging.getLogger(__name__)


class RunCheckpoint(ModelCheckpoint):
    """The best policy by a validation metric as ``best.ckpt``, and the newest as ``last.ckpt``.

    Lightning's ModelCheckpoint, with the names that ``--ckpt_path best`` and ``last`` look for,
    renews ``last.ckpt`` only when the metric gets better. This one does after every validation
    and when training ends, so that resuming loses no work; and of equally good policies it keeps
    the newest, which has learned most, where Lightning keeps the first.

    Every checkpoint stands between two iterations, so that going on from it gives the same losses,
    rollouts and weights, bit by bit. SIGTERM, SIGHUP and SLURM's signal before a time limit end the
    run behind the iteration that is running, with ``last.ckpt`` renewed; a validation that
    is cut off by it is made when the run goes on.

    A run of a command that goes on with another exam, such as other validation questions, forgets
    the best score: the first policy of the new exam is the best one. Till then ``best.ckpt`` stays.

    Args:
        monitor: the metric.
        mode: max or min, whichever is better.
        dirpath: where to; None is ``checkpoints`` in the trainer's default_root_dir.
        every_n_iterations: renew ``last.ckpt`` also so often, between validations; None does not.
        every_minutes: renew it also when that long has passed since it was written, so that a crash
            costs no more; None does not.

    Raises:
        ValueError: ``every_n_iterations`` or ``every_minutes`` is not positive.
    """

    def __init__(
        self,
        monitor: str = "val/f1",
        mode: str = "max",
        dirpath: str | None = None,
        every_n_iterations: int | None = None,
        every_minutes: float | None = 30.0,
    ) -> None:
        if every_n_iterations is not None and every_n_iterations < 1:
            raise ValueError(
                f"every_n_iterations must be at least 1 or null, got {every_n_iterations}"
            )
        if every_minutes is not None and not every_minutes > 0:
            raise ValueError(f"every_minutes must be positive or null, got {every_minutes}")
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=False,  # the monitor is known after a validation alone
            enable_version_counter=False,
        )
        self.every_n_iterations, self.every_minutes = every_n_iterations, every_minutes
        self._written = time.monotonic()
        self._stop = StopSignal()
        self._before_validation: dict[str, Any] | None = None
        self._owes_validation = False
        self._saved_after: int | None = None
        self._exam: Exam | None = None
        self._forgot: tuple[float, list[str]] | None = None  # a score, and why it is forgotten

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the folder, and what the validation is made with."""
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        if stage == "fit":
            self._exam = exam_of(trainer)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen for signals, and make the validation that one cut off.

        A run begun anew drops the checkpoints of the run before: ``last`` would go on with that.
        """
        super().on_train_start(trainer, pl_module)
        self._written = time.monotonic()
        self._stop.listen(trainer)
        self._say_forgotten(trainer)
        if trainer.ckpt_path is None and trainer.is_global_zero:
            for name in ("best.ckpt", "last.ckpt"):
                remove_checkpoint(Path(str(self.dirpath)) / name)
        if self._owes_validation:
            self._owes_validation = False
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.restarting = False  # else it would begin where the last one ended
            trainer.validating = True
            validation.run()
            trainer.training = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Renew ``last.ckpt`` where it is time, and end the run if it was asked to."""
        last = _is_over(trainer)  # then what follows saves, and goes before the end
        validates = validates_next(trainer)
        if self._stop.heard(trainer) and not last:
            self._owes_validation = validates
            self._renew_last(trainer)
            self._stop.end(trainer)
        self._before_validation = None
        if validates and not last:
            self._before_validation = copy.deepcopy(trainer.fit_loop.state_dict())
        elif not last and self._is_time(trainer):
            self._renew_last(trainer)

    def _say_forgotten(self, trainer: pl.Trainer) -> None:
        forgot, self._forgot = self._forgot, None
        if forgot is not None and trainer.is_global_zero:
            log.warning(
                "the best %s so far, %.4g, is forgotten, for the run is validated otherwise than "
                "before (%s); best.ckpt stays until the next validation, which begins anew",
                *(self.monitor, forgot[0], ", ".join(forgot[1])),
            )

    def _is_time(self, trainer: pl.Trainer) -> bool:
        """Whether ``last.ckpt`` is renewed between validations; all ranks must ask."""
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if self.every_n_iterations and done % self.every_n_iterations == 0:
            return True
        if self.every_minutes is None:
            return False
        due = time.monotonic() - self._written >= 60 * self.every_minutes
        return trainer.strategy.reduce_boolean_decision(due, all=False)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """End the run inside a validation if it was asked to; the validation is made again."""
        if self._before_validation is not None and self._stop.heard(trainer):
            self._owes_validation = True
            self._renew_last(trainer)
            self._stop.end(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the state of the loops before a validation that was cut off.

        Behind the last batch of a pass it is the state with which the next pass begins.
        """
        loops = checkpoint["loops"]
        if self._owes_validation and self._before_validation is not None:
            loops["fit_loop"] = self._before_validation
        loops["fit_loop"] = at_next_pass(loops["fit_loop"])

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, the exam, and whether a validation that was cut off is due."""
        own = {"owes_validation": self._owes_validation, "exam": self._exam}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state; a folder that was moved keeps its best, another exam has none yet."""
        self._owes_validation = state_dict.get("owes_validation", False)
        folder = Path(str(self.dirpath))
        super().load_state_dict(_inside(_moved(state_dict, folder), folder))
        others = differences(state_dict.get("exam"), self._exam, str(self.monitor))
        if others and self.best_model_score is not None:
            self._forgot = float(self.best_model_score), others
            self.best_model_score = self.current_score = None
            self.best_model_path = self.kth_best_model_path = ""
            self.best_k_models = {}
            self.kth_value = torch.tensor(-torch.inf if self.mode == "max" else torch.inf)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Return whether the current policy is at least as good as the best so far."""
        if super().check_monitor_top_k(trainer, current):
            return True
        tie = current is not None and bool(current == self.best_model_score)
        return trainer.strategy.reduce_boolean_decision(tie)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``best.ckpt`` if no policy was better, and ``last.ckpt`` in any case."""
        super().on_validation_end(trainer, pl_module)
        self._before_validation = None
        self._renew_last(trainer)
        goes_on = trainer.global_step > 0 and not _is_over(trainer)
        if trainer.state.fn == TrainerFn.FITTING and goes_on and self._stop.heard(trainer):
            self._stop.end(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``last.ckpt`` if training went on after the last validation."""
        if self._saved_after != trainer.global_step:
            self._renew_last(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save nothing, for an iteration may be half done; say how to go on."""
        self._stop.forget()
        if isinstance(exception, KeyboardInterrupt) and trainer.state.fn == TrainerFn.FITTING:
            if self._saved_after is None:
                rank_zero_info("interrupted before the first checkpoint; nothing was kept")
            else:
                rank_zero_info(
                    "interrupted; go on behind update %d with the same command and "
                    "`--ckpt_path last`",
                    self._saved_after,
                )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the signal handlers that were there before."""
        super().teardown(trainer, pl_module, stage)
        self._stop.forget()

    def _renew_last(self, trainer: pl.Trainer) -> None:
        if trainer.global_step > 0 and not self._should_skip_saving(trainer):
            # set before it is written, because it is part of what is written
            self.last_model_path = str(Path(str(self.dirpath)) / "last.ckpt")
            trainer.save_checkpoint(self.last_model_path)
            self._saved_after, self._written = trainer.global_step, time.monotonic()
            for logger in trainer.loggers if trainer.is_global_zero else ():
                logger.after_save_checkpoint(self)

    @staticmethod
    def _should_skip_saving(trainer: pl.Trainer) -> bool:
        fitting = trainer.state.fn == TrainerFn.FITTING
        dry: int = trainer.fast_dev_run  # type: ignore[attr-defined]
        return bool(dry) or not fitting or trainer.sanity_checking


def _is_over(trainer: pl.Trainer) -> bool:
    """Whether the batch that has just been trained on is the last of the run, not of a pass."""
    if -1 < trainer.max_steps <= trainer.global_step:
        return True
    loop = trainer.fit_loop
    passes, most = trainer.current_epoch + 1, loop.max_epochs or -1
    return loop.epoch_loop.batch_progress.is_last_batch and -1 < most <= passes


def _inside(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The state of a callback without paths that lie elsewhere: what is no longer best is removed.

    A checkpoint may be somebody else's, and name any file of this machine.
    """
    kept = state.get("best_k_models", {})
    where = folder.resolve()
    mine = {path: kept[path] for path in kept if Path(path).resolve().parent == where}
    return {**state, "best_k_models": mine}


def _moved(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the state of a ModelCheckpoint with its paths in ``folder``, if the best is there."""
    if not state.get("best_model_path") or state.get("dirpath") == str(folder):
        return state

    def here(path: str) -> str:
        return str(folder / Path(path).name) if path else path

    if not Path(here(state["best_model_path"])).exists():
        return state
    paths = ("best_model_path", "kth_best_model_path", "last_model_path")
    moved = {name: here(state[name]) for name in paths if name in state}
    best = {here(path): score for path, score in state.get("best_k_models", {}).items()}
    return {**state, **moved, "best_k_models": best, "dirpath": str(folder)}
