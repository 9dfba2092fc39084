"""Locks: one process at a time writes to a folder, one thread at a time loads a model."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
"""Name of the lock file. It is never removed: that it exists does not mean that it is locked."""
LOADING = threading.RLock()
"""Held by a thread that loads a model of transformers: ``from_pretrained`` changes functions of its
classes for a while, and two at once may leave them changed (weights are then no longer tied)."""

_PROC_LOCKS, _PROC_MOUNTS = Path("/proc/locks"), Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")
_LOCAL = frozenset(
    (
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "reiserfs"),
        *("overlay", "tmpfs", "ramfs", "vfat", "exfat"),
    )
)
"""File systems that one machine has for itself; any other may be shared."""


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

    Nothing is locked or written for it: Linux lists the locks that are held. It does not list what
    another machine holds on a file system that both share; what it does not list there is unknown.
    """
    try:
        found = (folder / LOCK).stat()
    except OSError:
        return False
    try:
        lines = _PROC_LOCKS.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    mounts = _mounts_of(folder, found.st_dev)
    devices = {found.st_dev, *(device for device, _ in mounts)}
    places = {f"{os.major(d):02x}:{os.minor(d):02x}:{found.st_ino}" for d in devices}
    if any(places & set(line.split()) for line in lines):
        return True
    return False if mounts and all(kind in _LOCAL for _, kind in mounts) else None


def _mounts_of(folder: Path, device: int) -> list[tuple[int, str]]:
    """Device and file system of the mounts that hold a folder; nothing where that is not told.

    A subvolume of btrfs has a device of its own, which no mount has: there it is the mount with the
    longest path above the folder.
    """
    try:
        lines = _PROC_MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
        above = folder.resolve()
    except OSError:
        return []
    found, nearest = [], (0, -1, "")
    for line in lines:
        fields, _, rest = line.partition(" - ")
        _, _, place, _, point, *_ = [*fields.split(), *[""] * 5]
        major, _, minor = place.partition(":")
        if not (major.isdigit() and minor.isdigit()):
            continue
        own, kind = os.makedev(int(major), int(minor)), rest.partition(" ")[0]
        path = Path(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), point))
        if own == device:
            found.append((own, kind))
        elif above.is_relative_to(path) and len(path.parts) >= nearest[1]:
            nearest = own, len(path.parts), kind
    if not found and nearest[2] == "btrfs":
        found = [(nearest[0], nearest[2])]
    return found
