"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
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


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class LineError(ValueError):
    """A file cannot be read; names it, the line and what is wrong there.

    Args:
        file: the file or data set.
        line: counted from 1 (for parquet and the Hub: the row); None if the whole is at fault.
        reason: what is wrong.
    """

    def __init__(self, file: str | Path, line: int | None, reason: str) -> None:
        super().__init__(f"{file}:{line}: {reason}" if line else f"{file}: {reason}")
        self.file, self.line, self.reason = str(file), line, reason

    def __reduce__(self) -> tuple[type[LineError], tuple[str, int | None, str]]:
        return type(self), (self.file, self.line, self.reason)
