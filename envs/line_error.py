"""The error of a file that cannot be read."""

from __future__ import annotations

from pathlib import Path


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
