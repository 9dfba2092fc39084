"""A disk that is full, or will be: said beforehand, and told with what is left and the way on."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOLD = "make room"
LITTLE = 50 * 2**20
"""Bytes that any long command should find free."""


def free_at(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or will be made."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    return shutil.disk_usage(there).free


def warn_of_room(folder: Path, what: str, needed: int = LITTLE) -> None:
    """Warn, before long work begins, where less is free than it will take.

    Args:
        folder: where it is written.
        what: is written, for the message.
        needed: bytes, as far as they are known.
    """
    if (free := free_at(folder)) < needed:
        log.warning(
            "%s takes about %.0f MB, and %.0f MB are free in %s; make room before it is full",
            *(what, needed / 1e6, free / 1e6, folder),
        )


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error; some libraries tell it as text alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(os.strerror(number) in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def told_if_full(
    folder: Path, left: str, way_on: str = "give the same command again"
) -> Iterator[None]:
    """Say of a full disk where it is, what is left there, and how to go on.

    Args:
        folder: where the command writes.
        left: what of its work is kept.
        way_on: what to do when there is room.

    Raises:
        OSError: in place of the error of the system.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error) or _TOLD in str(error):
            raise
        raise OSError(
            f"{folder} is not complete: {error} ({free_at(folder) / 1e6:.1f} MB free there); "
            f"{left}; {_TOLD}, then {way_on}"
        ) from error
