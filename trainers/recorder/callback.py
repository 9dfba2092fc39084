"""The callback that records every training rollout for ``research replay``."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from research_rl.trainers.callbacks import RunCallback, cosmetic, rollouts_of, run_folder
from research_rl.trainers.distributed import gather
from research_rl.trainers.recorder.records import FOLDER, Records, record_of


class FlightRecorder(RunCallback):
    """Records every training rollout as token ids, log-probs, passages, seed and reward.

    ``research replay`` plays the records again, and compares those of two runs. A resumed run
    continues after its checkpoint and replaces what was recorded later.

    Args:
        max_megabytes: limit for all records together, compressed; the oldest iterations are dropped
            to keep it. None for no limit.
        folder: of the records, inside the run's folder.

    Raises:
        ValueError: the limit is not positive.
    """

    label = "records"

    def __init__(self, max_megabytes: float | None = 1000.0, folder: str = FOLDER) -> None:
        super().__init__()
        if max_megabytes is not None and not max_megabytes > 0:
            raise ValueError(f"max_megabytes must be positive or null, got {max_megabytes}")
        self.max_megabytes = max_megabytes
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove what an earlier run recorded after the point where this one continues."""
        if trainer.is_global_zero:
            with cosmetic("clear the flight recorder"):
                resumed = trainer.ckpt_path is not None
                self._records(trainer).forget(_learned(pl_module) if resumed else 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Record the iteration that has just been learned from."""
        rollouts = rollouts_of(pl_module, "train_rollouts")
        worth = rollouts_of(pl_module, "train_advantages")
        records = gather([record_of(r, a) for r, a in zip(rollouts, worth, strict=True)])
        if trainer.is_global_zero:
            iteration = _learned(pl_module) - 1
            with cosmetic("record the rollouts"):
                records_of_run = self._records(trainer)
                versions = [v for rollout in rollouts for v in rollout.sequence.versions]
                records_of_run.write(iteration, min(versions, default=iteration), records)
                self.written = records_of_run.folder

    def _records(self, trainer: pl.Trainer) -> Records:
        limit = None if self.max_megabytes is None else int(self.max_megabytes * 1e6)
        return Records(run_folder(trainer) / self.folder, limit)


def _learned(pl_module: pl.LightningModule) -> int:
    iteration: Any = pl_module.iteration
    return int(iteration)
