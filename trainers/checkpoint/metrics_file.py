"""The metrics file of a run that was stopped and goes on: no row lost, none twice."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.trainer.states import TrainerFn

from research_rl.envs.system import clear_partial, write_whole


class KeepMetrics(pl.Callback):
    """A resumed run goes on in ``metrics.csv`` with exactly the rows its checkpoint has seen.

    The rows travel in the checkpoint, so it does not matter what a crash left of the file.
    Lightning's CSVLogger deletes the file as soon as the trainer starts, before any hook of a
    callback: call ``read`` ahead of ``trainer.fit``. The file then stays until training starts, so
    that a run which fails before costs nothing.
    """

    def __init__(self) -> None:
        self._files: list[Path] = []
        self._loggers: list[CSVLogger] = []
        self._saved: list[str] | None = None

    def read(self, trainer: pl.Trainer) -> None:
        """Keep the files of the trainer's CSVLoggers until training starts."""
        for logger in _csv_loggers(trainer) if trainer.is_global_zero else ():
            path = metrics_file(logger)
            if path.is_file():
                kept = path.with_name(f".{path.name}.kept")
                os.replace(path, kept)
                _ = logger.experiment  # deletes the file, now and not again
                os.replace(kept, path)
                self._files.append(path)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the loggers, whose files go into every checkpoint."""
        self._loggers = _csv_loggers(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the text of each logger's file."""
        for logger in self._loggers:
            logger.save()
        paths = [metrics_file(logger) for logger in self._loggers]
        return {"files": [_read(path) for path in paths]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the text until training starts."""
        self._saved = list(state_dict["files"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give each file the rows of the checkpoint; none where no state was restored."""
        if trainer.is_global_zero:
            known = dict(zip(map(metrics_file, self._loggers), self._saved or [], strict=False))
            for logger in self._loggers:
                path = metrics_file(logger)
                # a checkpoint without the rows is resumed with the file as it is
                kept = _read(path) if trainer.ckpt_path and path in self._files else ""
                _restore(logger, known.get(path, kept))
        self._files, self._saved = [], None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Number what is logged by the iterations learned from, also where none is made."""
        if trainer.state.fn != TrainerFn.FITTING:
            learned = int(getattr(pl_module, "iteration", 0))
            trainer.fit_loop.epoch_loop._batches_that_stepped = learned

    on_test_start = on_validation_start


def _restore(logger: CSVLogger, text: str) -> None:
    """Write the file whole, and let the logger go on behind its last row."""
    path = metrics_file(logger)
    writer = logger.experiment  # deletes the file if ``read`` was not called
    if not text:
        path.unlink(missing_ok=True)
        return
    clear_partial(path.parent, path.name)
    write_whole(path, text)
    writer.metrics_keys[:] = sorted(next(csv.reader(text.splitlines()), []))


def _read(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        return file.read()


def _csv_loggers(trainer: pl.Trainer) -> list[CSVLogger]:
    return [x for x in trainer.loggers if isinstance(x, CSVLogger)]


def metrics_file(logger: CSVLogger) -> Path:
    """Return where a logger writes its rows."""
    return Path(logger.log_dir) / "metrics.csv"
