"""Progress of long work: a bar in a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 10.0
"""Seconds between two lines of a log file; shorter work writes none."""
_LINE = "{desc}: {n_fmt} of {total_fmt} ({elapsed} gone, {remaining} left{speed}{postfix})"


class _Lines:
    """A file for tqdm to draw on: each state of the bar becomes a line of its own."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, drawn: str) -> None:
        line = drawn.replace("\r", "").strip()
        if line:
            self._file.write(line + "\n")

    def flush(self) -> None:
        self._file.flush()


class _Plain(tqdm):  # type: ignore[misc]  # has no types
    """A bar for log files: a plain line now and then."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What a line is made of; ``speed`` is empty until there is one."""
        known: dict[str, Any] = super().format_dict
        done, elapsed = known["n"] - (known["initial"] or 0), known["elapsed"]
        rate = known["rate"] or (done / elapsed if elapsed else 0.0)
        known["speed"] = f", {_speed(rate, known['unit'])}" if rate > 0 else ""
        return known

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Set the description as it is: tqdm would add a colon, which the line has already."""
        self.set_description_str(desc, refresh)


def _speed(rate: float, unit: str) -> str:
    """``85.69 questions/s``, ``3.20k passages/s``, ``1.50MB/s`` or ``2.50 s/question``."""
    one = unit.strip().removesuffix("s")
    if one == "B":
        return f"{tqdm.format_sizeof(rate)}B/s"
    if rate < 1:
        return f"{1 / rate:.2f} s/{one}"
    number = f"{rate:.2f}" if rate < 1000 else tqdm.format_sizeof(rate)
    return f"{number} {one}s/s"


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
