"""Checkpoint files that are either whole or not there, and how they are found by name."""

from __future__ import annotations

import copy
import errno
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.load import _METADATA_FILENAME, _load_distributed_checkpoint
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info

from research_rl.trainers.stopping import StopSignal

log = logging.getLogger(__name__)
META = _METADATA_FILENAME
"""In the folder of a checkpoint in shards: all but weights and states of optimizers."""
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

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint; one that ranks wrote in shards is put together."""
        if "://" in str(path) or not Path(path).is_dir():
            return super().load_checkpoint(path, map_location, weights_only)
        return load_state(Path(path))


def put_folder_in_place(partial: Path, target: Path) -> None:
    """Let a finished folder take the place of a checkpoint; the former goes last of all.

    A folder cannot be renamed over another: a crash between two renames leaves the former one
    under a hidden name, and ``find_checkpoint`` puts it back.
    """
    former = _former(target)
    shutil.rmtree(former, ignore_errors=True)
    if target.is_dir():
        target.replace(former)
    elif target.exists():
        target.unlink()
    partial.replace(target)
    shutil.rmtree(former, ignore_errors=True)


def _former(target: Path) -> Path:
    return target.with_name(f".{target.name}.former")


def _put_back(folder: Path) -> None:
    """Give former folders their names back where a crash kept the new ones from taking them."""
    for former in folder.glob(".*.ckpt.former"):
        target = folder / former.name.removeprefix(".").removesuffix(".former")
        if not target.exists():
            with suppress(FileNotFoundError):  # another rank was faster
                former.replace(target)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, in main memory; that of a folder is put together.

    Of a folder, which ranks wrote in shards, the result is what a single process would have saved.
    """
    if path.is_file():
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return state
    state = _load_distributed_checkpoint(path)
    names = sorted(name for name in state if name.startswith("optimizer_") and name[10:].isdigit())
    if names:
        state["optimizer_states"] = [_numbered(state.pop(name)) for name in names]
    return state


def _numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer by number of the weight, as one process keeps it, not by name."""
    groups, number = optimizer["param_groups"], dict[str, int]()
    for group in groups:
        for name in group["params"]:
            number.setdefault(name, len(number))
    return {
        "state": {number[name]: values for name, values in optimizer["state"].items()},
        "param_groups": [{**g, "params": [number[name] for name in g["params"]]} for g in groups],
    }


def disk_error(error: BaseException) -> str | None:
    """Return the reason where the disk is behind an error, None where it is not.

    Libraries hide it: torch behind a RuntimeError, safetensors as text in an error of its own.
    """
    for each in _chain(error):
        if isinstance(each, OSError):
            return each.strerror or str(each)
        for number in _DISK_FULL:
            if f"os error {number}" in str(each) or os.strerror(number) in str(each):
                return os.strerror(number)
    return None


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

    Every checkpoint stands between two iterations, so that going on from it gives the same losses,
    rollouts and weights, bit by bit. SIGTERM, and under SLURM the signal before a time limit, end
    the run behind the iteration that is running, with ``last.ckpt`` renewed; a validation that
    is cut off by it is made when the run goes on.

    Args:
        monitor: the metric.
        mode: max or min, whichever is better.
        dirpath: where to; None is ``checkpoints`` in the trainer's default_root_dir.
        every_n_iterations: renew ``last.ckpt`` also so often, between validations; None does not.

    Raises:
        ValueError: ``every_n_iterations`` is not positive.
    """

    def __init__(
        self,
        monitor: str = "val/f1",
        mode: str = "max",
        dirpath: str | None = None,
        every_n_iterations: int | None = None,
    ) -> None:
        if every_n_iterations is not None and every_n_iterations < 1:
            raise ValueError(
                f"every_n_iterations must be at least 1 or null, got {every_n_iterations}"
            )
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_last=True,
            save_on_train_epoch_end=False,  # else last.ckpt, written first, would stand in its way
            enable_version_counter=False,
        )
        self.every_n_iterations = every_n_iterations
        self._stop = StopSignal()
        self._before_validation: dict[str, Any] | None = None
        self._owes_validation = False
        self._saved_after: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the folder."""
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen for signals, and make the validation that one cut off.

        A run begun anew drops the checkpoints of the run before: ``last`` would go on with that.
        """
        super().on_train_start(trainer, pl_module)
        self._stop.listen(trainer)
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
        loop = trainer.fit_loop.epoch_loop
        last = loop._is_training_done  # then what follows saves, and goes before the end
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None, "training goes on"
        validates = loop._should_check_val_fx(fetcher)
        if self._stop.heard(trainer) and not last:
            self._owes_validation = validates
            self._renew_last(trainer)
            self._stop.end(trainer)
        self._before_validation = None
        if validates and not last:
            self._before_validation = copy.deepcopy(trainer.fit_loop.state_dict())
        elif self.every_n_iterations and (loop.total_batch_idx + 1) % self.every_n_iterations == 0:
            self._renew_last(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """End a validation that was asked to, in the state before it."""
        if self._before_validation is not None and self._stop.heard(trainer):
            self._owes_validation = True
            self._renew_last(trainer)
            self._stop.end(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Of a validation that was cut off, keep the state of the loops before it."""
        if self._owes_validation and self._before_validation is not None:
            checkpoint["loops"]["fit_loop"] = self._before_validation

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, and whether a validation is to be made up for."""
        return {**super().state_dict(), "owes_validation": self._owes_validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state; a folder that was moved keeps its best."""
        self._owes_validation = state_dict.get("owes_validation", False)
        super().load_state_dict(_moved(state_dict, Path(str(self.dirpath))))

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Return whether the current policy is at least as good as the best so far."""
        if super().check_monitor_top_k(trainer, current):
            return True
        tie = current is not None and bool(current == self.best_model_score)
        return trainer.strategy.reduce_boolean_decision(tie)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``best.ckpt`` if it is, and ``last.ckpt`` in any case."""
        super().on_validation_end(trainer, pl_module)
        self._before_validation = None
        self._renew_last(trainer)
        goes_on = trainer.global_step > 0 and not trainer.fit_loop.epoch_loop._is_training_done
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
        """Give the signals back."""
        super().teardown(trainer, pl_module, stage)
        self._stop.forget()

    def _renew_last(self, trainer: pl.Trainer) -> None:
        if trainer.global_step > 0 and not self._should_skip_saving(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._saved_after = trainer.global_step

    @staticmethod
    def _should_skip_saving(trainer: pl.Trainer) -> bool:
        fitting = trainer.state.fn == TrainerFn.FITTING
        dry: int = trainer.fast_dev_run  # type: ignore[attr-defined]
        return bool(dry) or not fitting or trainer.sanity_checking


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


def find_checkpoint(name: str, folder: Path) -> Path:
    """Return the checkpoint that ``name`` means.

    A torn one, cut short by a copy or a power failure, is skipped with a warning: ``last`` is then
    the newest that is whole.

    Args:
        name: a path; or ``last``, the newest whole ``last*.ckpt`` in ``folder``, else the newest
            whole checkpoint there; or ``best``, the one that the newest remembers as the best by
            its monitor.
        folder: where ModelCheckpoint writes.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CheckpointError: the file that is named is torn, or every one is.
    """
    _put_back(folder)
    if name not in ("last", "best"):
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(
                f"checkpoint must be a file, 'last' or 'best', got {name!r}, which is not there; "
                f"{_listing(folder)}"
            )
        if (torn := why_torn(path)) is not None:
            raise CheckpointError(f"{path} is not a whole checkpoint: {torn}; {_listing(folder)}")
        return path
    newest = _newest_whole(name, folder)
    return newest if name == "last" else _best(newest)


def why_torn(path: Path) -> str | None:
    """Return why a checkpoint cannot be used, None if it is whole; it is read once in full.

    A folder is a sharded checkpoint; it takes its name when all of it is written.
    """
    if path.is_dir():
        lacking = [n for n in (".metadata", META) if not (path / n).is_file()]
        return f"its {lacking[0]} is missing" if lacking else None
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        return str(error) or type(error).__name__
    return None if damaged is None else f"{damaged} is damaged"


def _newest_whole(name: str, folder: Path) -> Path:
    def age(path: Path) -> tuple[bool, float]:
        return path.name.startswith("last"), path.stat().st_mtime

    found = sorted(folder.glob("*.ckpt"), key=age, reverse=True)
    if not any(path.name.startswith("last") for path in found):
        raise FileNotFoundError(
            f"no checkpoint {name!r} yet; {_listing(folder)}; `research fit` writes it at its "
            "first validation"
        )
    for path in found:
        torn = why_torn(path)
        if torn is None:
            return path
        log.warning("skipped %s, which is torn (%s)", path, torn)
    raise CheckpointError(f"every checkpoint in {folder} is torn; {_listing(folder)}; begin anew")


def _best(newest: Path) -> Path:
    file = newest / META if newest.is_dir() else newest
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    saved = [s for s in state.get("callbacks", {}).values() if isinstance(s, dict)]
    for each in saved:
        if each.get("best_model_path"):
            best = newest.parent / Path(each["best_model_path"]).name
            if best.exists() and (torn := why_torn(best)) is not None:
                raise CheckpointError(f"{best} is torn ({torn}); use 'last'")
            if best.exists():
                return best
    if any(each.get("monitor") for each in saved):
        raise FileNotFoundError(
            f"{newest} knows no best checkpoint: no validation has been made since training began; "
            "use 'last', or go on training until one is"
        )
    raise FileNotFoundError(
        f"{newest} knows no best checkpoint; give ModelCheckpoint a monitor, or use 'last'"
    )


def _listing(folder: Path) -> str:
    found = ", ".join(sorted(p.name for p in folder.glob("*.ckpt")))
    return f"{folder} holds {found}" if found else f"{folder} holds no checkpoint"
