"""Progress of long work: a bar in a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 10.0
"""Between two lines where there is no terminal; work that is over sooner leaves none."""
_LINE = "{desc}: {n_fmt} of {total_fmt} ({elapsed} gone, {remaining} left, {rate_fmt}{postfix})"


class _Lines:
    """Takes what a bar draws over itself, and writes a line each time."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, drawn: str) -> None:
        line = drawn.replace("\r", "").strip()
        if line:
            self._file.write(line + "\n")

    def flush(self) -> None:
        self._file.flush()


class _Plain(tqdm):  # type: ignore[misc]  # has no types
    """Writes lines."""

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Name what is done; tqdm would add a colon, which stands in the line already."""
        self.set_description_str(desc, refresh)


def progress_bar(*args: Any, seconds: float = SECONDS, **options: Any) -> tqdm[Any]:
    """Return a bar on stderr, with the arguments of tqdm.

    Args:
        args: those of tqdm.
        seconds: between two lines where stderr is no terminal.
        options: those of tqdm.
    """
    if sys.stderr.isatty():
        return tqdm(*args, **options)
    options |= {"file": _Lines(sys.stderr), "bar_format": _LINE, "position": 0}
    options |= {"mininterval": seconds, "maxinterval": seconds, "delay": seconds}
    return _Plain(*args, **options)
