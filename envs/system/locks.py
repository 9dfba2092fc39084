"""Locks: one process at a time writes to a folder, one thread at a time loads a model."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
"""Name of the lock file. It is never removed: that it exists does not mean that it is locked."""
LOADING = threading.RLock()
"""Held by a thread that loads a model of transformers: ``from_pretrained`` changes functions of its
classes for a while, and two at once may leave them changed (weights are then no longer tied)."""


@contextmanager
def alone_in(
    folder: Path,
    what: str = "is being written by another process",
    instead: str = "give --out another folder",
    patience: float = 0.0,
) -> Iterator[None]:
    """Lock a folder against other processes; the system releases the lock of a killed process.

    Args:
        folder: made if need be.
        what: what the error says of a folder that another process has locked.
        instead: what the error says may be done instead of waiting.
        patience: seconds to wait for the other process first.

    Raises:
        FileExistsError: another process has locked it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise FileExistsError(f"{folder} {what}; wait until it has ended, or {instead}") from error
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool | None:
    """Return whether a process of this machine holds the lock of a folder, None if unknown.

    Nothing is locked or written for it: Linux lists the locks that are held.
    """
    try:
        found = (folder / LOCK).stat()
    except OSError:
        return False
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    device, number = found.st_dev, found.st_ino
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{number}"
    return any(place in line.split() for line in lines)
