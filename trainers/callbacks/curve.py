"""The callback that draws the learning curve of a run while it trains, as one PNG.

It draws from ``metrics.csv``, so a resumed run has its whole curve.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from research_rl.envs.system import clear_partial
from research_rl.trainers.callbacks.base import (
    RunCallback,
    cosmetic,
    csv_logger,
    positive,
    run_folder,
)
from research_rl.trainers.callbacks.plots import learning_curve
from research_rl.trainers.progress import finished_iterations

log = logging.getLogger(__name__)


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
        self.every_n_steps = positive("every_n_steps", every_n_steps)
        self.filename = filename

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Say at once if there will be no curve."""
        if stage == "fit" and trainer.is_global_zero and csv_logger(trainer) is None:
            log.warning("no learning curve will be drawn: it needs a CSVLogger; add one to logger")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the half-drawn pictures of a run that was killed."""
        if trainer.is_global_zero:
            with cosmetic("clear half-drawn curves"):
                clear_partial(run_folder(trainer), self.filename)

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
        logger = csv_logger(trainer)
        if logger is None or not trainer.is_global_zero:
            return
        with cosmetic("draw the learning curve"):
            logger.save()
            metrics = Path(logger.log_dir) / "metrics.csv"
            if metrics.is_file():
                self.written = learning_curve(metrics, metrics.with_name(self.filename))
