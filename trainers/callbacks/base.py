"""The base class of callbacks that write into the run's folder, beside ``metrics.csv``.

A picture or a page that cannot be written is a warning and never ends a training. Only the first
rank writes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_info

from research_rl.trainers.progress import finished_iterations

log = logging.getLogger(__name__)


class RunCallback(pl.Callback):
    """A callback that writes into the run's folder; the first one lists the files at the end."""

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


@contextmanager
def cosmetic(what: str) -> Iterator[None]:
    """Turn any failure inside into a warning with its reason: training goes on without it."""
    try:
        yield
    except Exception as error:
        log.warning("could not %s: %s: %s", what, type(error).__name__, error, exc_info=True)


def learned_iterations(trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
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


def learns_from_rewards(pl_module: pl.LightningModule) -> bool:
    """Whether its batches are rollouts that the policy sampled; False where it imitates others."""
    return bool(getattr(pl_module, "learns_from_rewards", True))


def run_folder(trainer: pl.Trainer) -> Path:
    """Return where ``metrics.csv`` lies; without a CSVLogger, the trainer's root folder."""
    logger = csv_logger(trainer)  # not trainer.log_dir: it waits for the other ranks
    return Path(logger.log_dir if logger else trainer.default_root_dir)


def csv_logger(trainer: pl.Trainer) -> CSVLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, CSVLogger)), None)


def _checkpoints(trainer: pl.Trainer) -> list[str]:
    found = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    return [path for c in found if (path := c.best_model_path or c.last_model_path)]


def positive(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
