"""One process at a time in a folder that is written, one model at a time that is loaded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
"""Name of the lock file; it stays behind, and being there means nothing."""
LOADING = threading.RLock()
"""Held by a thread that loads a model of transformers: ``from_pretrained`` changes functions of its
classes for a while, and two at once may leave them changed (weights are then no longer tied)."""


@contextmanager
def alone_in(
    folder: Path,
    what: str = "is being written by another process",
    instead: str = "give --out another folder",
) -> Iterator[None]:
    """Hold a folder against other processes; the system lets go of it when a process is killed.

    Args:
        folder: made if need be.
        what: said of a folder that another process holds.
        instead: what may be done in place of waiting.

    Raises:
        FileExistsError: another process holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FileExistsError(f"{folder} {what}; wait until it has ended, or {instead}") from error
    try:
        yield
    finally:
        lock.release()
