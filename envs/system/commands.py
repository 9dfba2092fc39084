"""Messages of commands: a usage error is one line, an unknown name comes with a suggestion.

``did_you_mean("fti", ["fit", "test"])`` is ``"; did you mean fit?"``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from difflib import get_close_matches
from typing import Any, NoReturn

FAILED = 2
"""Exit status after a command line that makes no sense."""
# C1 codes too: some terminals take U+009B for the beginning of an escape sequence. What turns the
# direction of writing (bidi) or ends a line unseen lets a text look like another one.
_SHOWN_AS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_SHOWN_AS |= {0x7F: 0x2421} | dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000)), 0xFFFD)
_SHOWN_AS |= dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F)), 0xFFFD)
_SHOWN_AS |= dict.fromkeys(range(0x2066, 0x206A), 0xFFFD)


def printable(text: str) -> str:
    """Return ``text`` as it may be printed: it can neither fail to encode nor steer a terminal.

    Control characters become their symbols (U+2400 and on), or U+FFFD where they have none; so do
    lone surrogates, characters that turn the direction of writing, and the line ends U+2028 and
    U+2029. Tabs and newlines stay.

    >>> printable("\x1b[2J")
    '\u241b[2J'
    """
    return text.translate(_SHOWN_AS)


def printable_json(text: str) -> str:
    """Return JSON that says the same and may be printed: what ``printable`` replaces is escaped."""
    return "".join(c if printable(c) == c else f"\\u{ord(c):04x}" for c in text)


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


class _Found(BaseException):
    """Carries the parser out of a command."""


_wanted: ContextVar[bool] = ContextVar("_wanted", default=False)


def parser_of(command: Callable[[list[str]], object]) -> argparse.ArgumentParser | None:
    """Return the parser with which a command reads its arguments; nothing is parsed or done.

    Args:
        command: its ``main``, which makes a CommandLine; of another one None is returned, and it
            must not do anything with ``--help``.
    """
    token = _wanted.set(True)
    try:
        command(["--help"])
    except _Found as found:
        made: argparse.ArgumentParser = found.args[0]
        return made
    finally:
        _wanted.reset(token)
    return None


class CommandLine(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage of every option."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; where the parser is wanted itself, hand it out."""
        if _wanted.get():
            raise _Found(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End with status 2 and the reason."""
        self.exit(FAILED, printable(f"research: error: {message}; see {self.prog} --help\n"))
