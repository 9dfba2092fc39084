"""Checkpoint files: written whole or not at all, and found by ``last``, ``best`` or their path.

A full disk in the middle of ``torch.save`` would otherwise leave a file that looks like a
checkpoint and does not load.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from research_rl.envs.system import clear_partial, put_back_former, write_whole
from research_rl.trainers.checkpoint.shards import METADATA, check_shards, load_plain, unsafe
from research_rl.trainers.lightning_internals import load_shards, sharded_metadata

log = logging.getLogger(__name__)
META = sharded_metadata()
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
        written = 0

        def save(file: BinaryIO) -> None:
            nonlocal written
            try:
                torch.save(checkpoint, file)
            finally:
                written = os.fstat(file.fileno()).st_size

        try:
            clear_partial(target.parent, target.name)
            write_whole(target, save)
        except (OSError, RuntimeError) as error:
            # torch.save answers a failed write with a RuntimeError in whose context the OSError is.
            cause = next((e for e in _chain(error) if isinstance(e, OSError)), None)
            if cause is None:
                raise
            raise CheckpointError(_why(cause, target, written)) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint; one that ranks wrote in shards is put together.

        Whatever ``weights_only`` says, nothing in it is run: tensors, numbers and texts are read.

        Raises:
            UnsafeCheckpointError: it holds more than these.
        """
        if "://" in str(path) or not Path(path).is_dir():
            try:
                return super().load_checkpoint(path, map_location, weights_only=True)
            except pickle.UnpicklingError as error:
                raise unsafe(path, error) from error
        return load_state(Path(path))


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
        state: dict[str, Any] = load_plain(path, mmap=True)
        return state
    check_shards(path)
    state = load_shards(path)
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
        UnsafeCheckpointError: it is in shards, and reading it would run code.
    """
    put_back_former(folder, "*.ckpt")  # sharded ones are folders
    if name not in ("last", "best"):
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(
                f"checkpoint must be a file, 'last' or 'best', got {name!r}, which is not there; "
                f"{_listing(folder)}"
            )
        if (torn := why_torn(path)) is not None:
            raise CheckpointError(f"{path} is not a whole checkpoint: {torn}; {_listing(folder)}")
        return _checked(path)
    newest = _checked(_newest_whole(name, folder))
    return newest if name == "last" else _checked(_best(newest))


def _checked(path: Path) -> Path:
    """A checkpoint whose reading runs no code; Lightning's strategies read it by themselves."""
    if path.is_dir():
        check_shards(path)
    return path


def why_torn(path: Path) -> str | None:
    """Return why a checkpoint cannot be used, None if it is whole; it is read once in full.

    A folder is a sharded checkpoint; it takes its name when all of it is written.
    """
    if path.is_dir():
        lacking = [n for n in (METADATA, META) if not (path / n).is_file()]
        return f"its {lacking[0]} is missing" if lacking else None
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        return str(error) or type(error).__name__
    return None if damaged is None else f"{damaged} is damaged"


def _newest_whole(name: str, folder: Path) -> Path:
    # best.ckpt is written before last.ckpt, so a kill in between may leave it alone
    found = sorted(folder.glob("*.ckpt"), key=_age, reverse=True)
    if not found:
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


def _age(path: Path) -> tuple[bool, int, int, str]:
    """What tells a newer checkpoint: its name, then the steps that it says it has learned.

    Times of change would not do: a copy of a run may have them in any order. Lightning counts
    up the versions of ``last`` as it makes them.
    """
    version = re.fullmatch(r"last-v(\d+)\.ckpt", path.name)
    try:
        state = load_plain(path / META if path.is_dir() else path, mmap=True)
        steps = int(state.get("global_step", -1))
    except Exception:  # torn or unsafe, which is said when it is taken
        steps = -1
    return path.name.startswith("last"), int(version[1]) if version else 0, steps, path.name


_SAID = "--ckpt last or --ckpt_path last; of research evaluate --models.NAME.checkpoint last"


def _best(newest: Path) -> Path:
    file = newest / META if newest.is_dir() else newest
    state = load_plain(file, mmap=True)
    saved = [s for s in state.get("callbacks", {}).values() if isinstance(s, dict)]
    for each in saved:
        if each.get("best_model_path"):
            best = newest.parent / Path(each["best_model_path"]).name
            if best.exists() and (torn := why_torn(best)) is not None:
                raise CheckpointError(f"{best} is torn ({torn}); say last in place of best")
            if best.exists():
                return best
    if any(each.get("monitor") for each in saved):
        raise FileNotFoundError(
            f"{newest} knows no best checkpoint: no validation has been made since training began "
            f"or its questions changed; say last in place of best ({_SAID}), or train on until one "
            "is made, every trainer.val_check_interval batches"
        )
    raise FileNotFoundError(
        f"{newest} knows no best checkpoint; give ModelCheckpoint a monitor, or say last in place "
        f"of best ({_SAID})"
    )


def _listing(folder: Path) -> str:
    found = ", ".join(sorted(p.name for p in folder.glob("*.ckpt")))
    return f"{folder} holds {found}" if found else f"{folder} holds no checkpoint"
