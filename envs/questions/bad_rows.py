"""Rows that cannot be read: counted, and the first three shown."""

from __future__ import annotations

from pathlib import Path

from research_rl.envs.system import LineError

_SHOWN = 3


class QuestionError(LineError):
    """Questions cannot be read."""


def not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> QuestionError:
    """Return the error about a byte that is no text."""
    return QuestionError(path, line, f"must be UTF-8, got byte {error.object[error.start]:#04x}")


class BadRows:
    """The bad rows of a file.

    Attributes:
        count: how many there are.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: list[tuple[int | None, str]] = []

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, line: int | None, reason: str) -> None:
        """Note one; only the first ones are kept."""
        self.count += 1
        if len(self._first) < _SHOWN:
            self._first.append((line, reason))

    def merge(self, line: int | None, reason: str, count: int) -> None:
        """Note several of which one is known."""
        self.add(line, reason)
        self.count += count - 1

    @property
    def line(self) -> int | None:
        """Where the first one is."""
        return self._first[0][0]

    @property
    def reason(self) -> str:
        """What is wrong with the first ones, of which the first is not named again."""
        (_, reason), *others = self._first
        shown = "".join(f"; line {line}: {why}" for line, why in others)
        more = self.count - len(self._first)
        return f"{reason}{shown}" + (f"; and {more} more lines" if more else "")

    def warning(self, source: object) -> str:
        """Return what is said where they are left out."""
        rows = "1 row is" if self.count == 1 else f"{self.count} rows are"
        return f"{source}: {rows} left out: line {self.line}: {self.reason}"

    def are_most(self, good: int) -> bool:
        """Whether there are more of them than good rows, so that the file is something else."""
        return self.count > good
