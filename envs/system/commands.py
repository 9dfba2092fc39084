"""Messages of commands: a usage error is one line, an unknown name comes with a suggestion.

``did_you_mean("fti", ["fit", "test"])`` is ``"; did you mean fit?"``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

FAILED = 2
"""Exit status after a command line that makes no sense."""


def did_you_mean(
    given: object, known: Iterable[str], quoted: bool = False, cutoff: float = 0.6
) -> str:
    """Return the end of a message about an unknown name: the known one that it resembles most.

    Args:
        given: what was written.
        known: what may be written.
        quoted: put the name in quotes, as a value has in Python.
        cutoff: how alike they must be, 0 to 1; see ``difflib.get_close_matches``.

    Returns:
        ``"; did you mean NAME?"``, or "" where no name is near.
    """
    near = get_close_matches(str(given), list(known), n=1, cutoff=cutoff)
    if not near:
        return ""
    return f"; did you mean {near[0]!r}?" if quoted else f"; did you mean {near[0]}?"


class CommandLine(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage of every option."""

    def error(self, message: str) -> NoReturn:
        """End with status 2 and the reason."""
        self.exit(FAILED, f"research: error: {message}; see {self.prog} --help\n")
