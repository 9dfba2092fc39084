r"""Answers inside a text: ``<answer>`` tags and ``\boxed{}``. No function here raises."""

from __future__ import annotations

import re
from functools import cache

_BRACE = re.compile(r"(?<!\\)\\+boxed\s*\{|\\[{}]|[{}]")  # the lookbehind keeps runs of \ linear


def tagged(text: str, opening: str, closing: str) -> str | None:
    """Return what the last complete ``opening ... closing`` holds, None without one."""
    head, closed, _ = text.rpartition(closing)
    _, opened, content = head.rpartition(opening)
    return content if closed and opened else None


def all_tagged(text: str, opening: str, closing: str) -> list[str]:
    """Return what each complete ``opening ... closing`` holds, in order; in linear time."""
    found: list[str] = []
    begin = text.find(opening)
    while begin >= 0:
        inner = begin + len(opening)
        end = text.find(closing, inner)
        if end < 0:
            break
        found.append(text[inner:end])
        begin = text.find(opening, end + len(closing))
    return found


def answer_content(text: str) -> str | None:
    """Return what the last complete ``<answer> ... </answer>`` holds, None without one."""
    return tagged(text, "<answer>", "</answer>")


def last_boxed(text: str) -> str | None:
    r"""Return what the last complete ``\boxed{...}`` holds, None without one.

    Braces are balanced. Of nested boxes the inner one counts; a box that is not closed does not.

    >>> last_boxed(r"\boxed{x_{1}} or \boxed {y")
    'x_{1}'
    """
    opened: list[tuple[int, bool]] = []
    start, found = -1, None
    for match in _BRACE.finditer(text):
        token = match[0]
        if token == "}" and opened:
            begin, box = opened.pop()
            if box and begin > start:
                start, found = begin, text[begin : match.start()]
        elif token.endswith("{") and token != "\\{":
            opened.append((match.end(), token != "{"))
    return found


def unreadable(text: str, tags: tuple[str, ...]) -> str:
    """Return the text without any of these tags: the first character of each is an entity.

    Also of one that stands inside another: of the tags ``<<a>`` and ``<a>`` both are gone.
    """
    return _beginnings(tags).sub(lambda match: _entity(match[0]), text)


@cache
def _beginnings(tags: tuple[str, ...]) -> re.Pattern[str]:
    # one character is consumed, so that tags which overlap are all found
    return re.compile("|".join(f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in tags if t))


def _entity(character: str) -> str:
    return {"<": "&lt;", ">": "&gt;"}.get(character, f"&#{ord(character)};")
