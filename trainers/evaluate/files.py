"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def clear_partial(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a folder."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def write_whole(path: Path, content: str | Iterable[bytes]) -> Path:
    """Write a file beside its place, rename it into it and return the path.

    Args:
        path: its folder is made.
        content: text, in which what UTF-8 cannot say is written as its number; or bytes.
    """
    parts = [content.encode("utf-8", "backslashreplace")] if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
