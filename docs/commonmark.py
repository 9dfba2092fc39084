"""GitHub's Markdown, written so that Python-Markdown (and so MkDocs) reads the same from it.

The pages of this folder are read on GitHub too. Two habits of theirs mean something else to
Python-Markdown: what belongs to a list item is indented by the width of its marker, there by four
columns; and a list or a table may follow a line of text without a blank line. ::

    for_python_markdown("Two ways:\\n- one\\n\\n  more")    # "Two ways:\\n\\n- one\\n\\n    more"
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

_MARKER = re.compile(r" *(?:[-*+]|\d+[.)]) *")
_CODE = re.compile(r"(`+)(.+?)\1")
INDENT = 4
"""Columns that Python-Markdown wants in front of what belongs to a list item."""


def parser() -> MarkdownIt:
    """Return a parser that reads what GitHub reads, as far as these pages use it."""
    return MarkdownIt("commonmark").enable("table")


def for_python_markdown(text: str) -> str:
    """Return the same page, list items indented by four, blank lines where they are needed."""
    lines = text.split("\n")
    tokens = parser().parse(text)
    taken, indent = [0] * len(lines), [0] * len(lines)
    for item in _items(tokens):
        _indent(lines, item, taken, indent)
    blank_before = set(_starts(tokens, lines))
    in_table = {n for begin, end in _spans(tokens, "table_open") for n in range(begin, end)}
    made = []
    for n, line in enumerate(lines):
        spaces = len(line) - len(line.lstrip(" "))
        kept = line[min(taken[n], spaces) :] if line.strip() else ""
        if n in blank_before:
            made.append("")
        if n in in_table:  # a pipe in code needs no backslash here, which would be shown
            kept = _CODE.sub(lambda found: found[0].replace("\\|", "|"), kept)
        made.append(" " * indent[n] + kept if kept else "")
    return "\n".join(made)


def _spans(tokens: list[Token], kind: str) -> list[tuple[int, int]]:
    return [(t.map[0], t.map[1]) for t in tokens if t.type == kind and t.map is not None]


def _items(tokens: list[Token]) -> list[tuple[int, int]]:
    """The first line of each list item and the line behind its last; outer ones come first."""
    return _spans(tokens, "list_item_open")


def _indent(lines: list[str], item: tuple[int, int], taken: list[int], indent: list[int]) -> None:
    """Note for each line of an item what of its indentation goes and what takes its place."""
    begin, end = item
    found = _MARKER.match(lines[begin], taken[begin])
    if found is None:
        return
    width = found.end() - taken[begin]
    for n in range(begin + 1, end):
        taken[n] += width
        indent[n] += INDENT


def _starts(tokens: list[Token], lines: list[str]) -> list[int]:
    """The lines that need a blank line in front of them.

    They begin a list that is no part of another one, a table, or an item behind one of several
    paragraphs.
    """
    begins, depth = [], 0
    for token in tokens:
        if token.type in ("bullet_list_open", "ordered_list_open"):
            if depth == 0 and token.map is not None:
                begins.append(token.map[0])
            depth += 1
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            depth -= 1
        elif token.type == "table_open" and token.map is not None:
            begins.append(token.map[0])
        elif token.type == "list_item_open" and token.map is not None:
            begin, end = token.map
            if end < len(lines) and not all(line.strip() for line in lines[begin:end]):
                begins.append(end)
    return [n for n in begins if n > 0 and lines[n - 1].strip()]
