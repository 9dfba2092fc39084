"""Checkpoints that are either whole or not there, and the metrics file of a resumed run."""

from __future__ import annotations

import csv
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CheckpointError(OSError):
    """A checkpoint could not be written; those written before are untouched."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside their place, synced, then renamed into it.

    A crash or a full disk leaves the former file of that name whole, and no half-written one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write ``checkpoint`` to ``path``; a remote path goes through Lightning as it is.

        Raises:
            CheckpointError: the disk is full or does not take the file.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        partial = target.with_name(f".{target.name}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except (OSError, RuntimeError) as error:
            # torch.save answers a failed write with a RuntimeError in whose context the OSError is.
            written = partial.stat().st_size if partial.exists() else 0
            partial.unlink(missing_ok=True)
            cause = next((e for e in _chain(error) if isinstance(e, OSError)), None)
            if cause is None:
                raise
            raise CheckpointError(_why(cause, target, written)) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _why(cause: OSError, target: Path, written: int) -> str:
    reason = cause.strerror or str(cause)
    if cause.errno in _DISK_FULL:
        folder = next((p for p in target.parents if p.is_dir()), Path())
        free = shutil.disk_usage(folder).free / 1e6
        reason += f" after {written / 1e6:.1f} MB ({free:.1f} MB free)"
    kept = sorted(p.name for p in target.parent.glob("*.ckpt")) if target.parent.is_dir() else []
    remedy = "resume with --ckpt_path last" if kept else "start anew"
    return (
        f"cannot write the checkpoint {target}: {reason}; "
        f"kept whole: {', '.join(kept) or 'none yet'}; make room, then {remedy}"
    )


class RunCheckpoint(ModelCheckpoint):
    """The best policy by a validation metric as ``best.ckpt``, and the newest as ``last.ckpt``.

    Lightning's ModelCheckpoint, with the names that ``--ckpt_path best`` and ``last`` look for,
    renews ``last.ckpt`` only when the metric gets better. This one does after every validation
    and when training ends, so that resuming loses no work; and of equally good policies it keeps
    the newest, which has learned most, where Lightning keeps the first.

    Args:
        monitor: the metric.
        mode: max or min, whichever is better.
        dirpath: where to; None is ``checkpoints`` in the trainer's default_root_dir.
        save_on_exception: also write ``last.ckpt`` when a run fails or is interrupted.
    """

    def __init__(
        self,
        monitor: str = "val/f1",
        mode: str = "max",
        dirpath: str | None = None,
        save_on_exception: bool = False,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_last=True,
            save_on_exception=save_on_exception,
            save_on_train_epoch_end=False,  # else last.ckpt, written first, would stand in its way
            enable_version_counter=False,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the folder."""
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Return whether the current policy is at least as good as the best so far."""
        if super().check_monitor_top_k(trainer, current):
            return True
        tie = current is not None and bool(current == self.best_model_score)
        return trainer.strategy.reduce_boolean_decision(tie)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``best.ckpt`` if it is, and ``last.ckpt`` in any case."""
        super().on_validation_end(trainer, pl_module)
        self._renew_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``last.ckpt`` if training went on after the last validation."""
        self._renew_last(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write ``last.ckpt`` if asked to, unless it is the checkpoint that failed."""
        if self._should_save_on_exception(trainer) and not isinstance(exception, CheckpointError):
            self._renew_last(trainer)

    def _renew_last(self, trainer: pl.Trainer) -> None:
        if trainer.global_step > 0 and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


def find_checkpoint(name: str, folder: Path) -> Path:
    """Return the checkpoint file that ``name`` means.

    Args:
        name: a path; or ``last``, the newest ``last*.ckpt`` in ``folder``; or ``best``, the one
            that the newest checkpoint in ``folder`` remembers as the best by its monitor.
        folder: where ModelCheckpoint writes.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    if name not in ("last", "best"):
        if not Path(name).exists():
            raise FileNotFoundError(
                f"checkpoint must be a file, 'last' or 'best', got {name!r}, which is not there; "
                f"in {folder}: {_listing(folder)}"
            )
        return Path(name)
    newest = max(folder.glob("last*.ckpt"), key=lambda p: p.stat().st_mtime, default=None)
    if newest is None:
        raise FileNotFoundError(
            f"no checkpoint {name!r} in {folder}: {_listing(folder)}; run `research fit` first"
        )
    return newest if name == "last" else _best(newest)


def _best(newest: Path) -> Path:
    state = torch.load(newest, map_location="cpu", weights_only=True, mmap=True)
    for saved in state.get("callbacks", {}).values():
        if isinstance(saved, dict) and saved.get("best_model_path"):
            best = newest.parent / Path(saved["best_model_path"]).name
            if best.is_file():
                return best
    raise FileNotFoundError(
        f"{newest} knows no best checkpoint; give ModelCheckpoint a monitor, or use 'last'"
    )


def _listing(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.glob("*.ckpt"))) or "nothing"


class KeepMetrics(pl.Callback):
    """A resumed run goes on in the ``metrics.csv`` of the run before it.

    Lightning's CSVLogger deletes the file as soon as the trainer starts, before any hook of a
    callback: call ``read`` ahead of ``trainer.fit``. The file then stays until training starts, so
    that a run which fails before costs nothing, and keeps the rows from before the checkpoint.
    """

    def __init__(self) -> None:
        self._rows: dict[Path, list[dict[str, str]]] = {}

    def read(self, trainer: pl.Trainer) -> None:
        """Remember the rows of the trainer's CSVLoggers, and keep their files."""
        for logger in _csv_loggers(trainer) if trainer.is_global_zero else ():
            path = _metrics_file(logger)
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                self._rows[path] = list(csv.DictReader(text.splitlines()))
                _ = logger.experiment  # deletes the file, now and not again
                path.write_text(text, encoding="utf-8")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the rows that the restored state has seen; none where no state was restored."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        seen = progress.total.processed if trainer.ckpt_path is not None else -1
        for logger in _csv_loggers(trainer):
            path = _metrics_file(logger)
            if path in self._rows:
                rows = self._rows.pop(path)
                logger.experiment.metrics[:0] = [_filled(r) for r in rows if _is_past(r, seen)]
                path.unlink(missing_ok=True)
                logger.save()


def _csv_loggers(trainer: pl.Trainer) -> list[CSVLogger]:
    return [x for x in trainer.loggers if isinstance(x, CSVLogger)] if trainer.logger else []


def _metrics_file(logger: CSVLogger) -> Path:
    return Path(logger.log_dir) / "metrics.csv"


def _filled(row: dict[str, str]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value}


def _is_past(row: dict[str, str], seen: int) -> bool:
    """Whether a row was logged before ``seen`` batches were done, or by the validation then."""
    step = int(float(row.get("step") or 0))
    return step < seen or (step == seen and not any(k.startswith("train/") for k in _filled(row)))
