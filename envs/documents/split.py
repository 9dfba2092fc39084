"""Documents split into passages: by headings, then by size, at the best border that is near."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from research_rl.envs.documents.reading import HeadingMark, Reading

SEPARATOR = " > "
"""Between the parts of a title: ``Guide > Install``."""
_SENTENCE = r"(?<=[.!?…。！？])['\"”»)\]]*\s+|(?<=[。！？])"
_BORDERS = tuple(map(re.compile, (r"\n\s*\n", r"\n", _SENTENCE, r"\s+")))
"""Where a passage may end, the best first: paragraph, line, sentence, word."""
_LETTER = re.compile(r"\S")
_MOST_PARTS = 4


@dataclass(frozen=True)
class Cut:
    """A passage of a document.

    Args:
        title: ``Document > Section > ...``.
        start: where it begins in the document's text, in characters.
        end: where it ends.
        page: the page on which it begins, from 1; None for what has no pages.
    """

    title: str
    start: int
    end: int
    page: int | None = None


def split_reading(reading: Reading, name: str, size: int, overlap: int) -> Iterator[Cut]:
    """Yield the passages of a document, in their order.

    A section without text of its own gives none. No passage reaches over a heading.

    Args:
        reading: the document.
        name: what it is called if it says nothing itself: the name of its file.
        size: characters of a passage at most.
        overlap: characters that a passage repeats of the one before it in its section, about.

    Raises:
        ValueError: ``size`` or ``overlap`` makes no sense.
    """
    if size < 50 or not 0 <= overlap <= size // 2:
        raise ValueError(
            "size must be at least 50 characters and overlap at most half of it, got "
            f"{size} and {overlap}"
        )
    own = _only_head(reading) or reading.title or name
    for path, begin, end in _sections(reading):
        parts = [part for part in (own, *path) if part]
        if len(parts) > 1 and parts[1].casefold() == own.casefold():
            del parts[1]
        title = SEPARATOR.join(parts[:1] + parts[1:][-(_MOST_PARTS - 1) :])
        for start, stop in _cuts(reading.text, begin, end, size, overlap):
            page = bisect_right(reading.pages, start) if reading.pages else None
            yield Cut(title, start, stop, page)


def _only_head(reading: Reading) -> str:
    """The title of a document whose first heading is its only outermost one."""
    outer = [mark for mark in reading.marks if mark.level == 1]
    return outer[0].title if len(outer) == 1 and reading.marks[0] is outer[0] else ""


def _sections(reading: Reading) -> Iterator[tuple[list[str], int, int]]:
    """Yield the headings above each section, and where it begins and ends."""
    first = reading.marks[0].start if reading.marks else len(reading.text)
    yield [], 0, first
    above: list[HeadingMark] = []
    for mark, after in zip(reading.marks, [*reading.marks[1:], None], strict=False):
        above = [*(one for one in above if one.level < mark.level), mark]
        yield [one.title for one in above], mark.end, after.start if after else len(reading.text)


def _cuts(text: str, begin: int, end: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yield where the passages of a section begin and end, without the white space around them."""
    start = begin
    while (letter := _LETTER.search(text, start, end)) is not None:
        start = letter.start()
        stop = end if end - start <= size else _border(text, start, start + size)
        yield start, start + len(text[start:stop].rstrip())
        if stop >= end or _LETTER.search(text, stop, end) is None:
            return
        start = max(start + 1, _after(text, start, stop, overlap))


def _border(text: str, start: int, limit: int) -> int:
    """Return where to end a passage: the last best border in its second half."""
    half = start + (limit - start) // 2
    for border in _BORDERS:
        places = [match.end() for match in border.finditer(text, half, limit)]
        if places:
            return places[-1]
    return limit


def _after(text: str, start: int, stop: int, overlap: int) -> int:
    """Return where the next passage begins: about ``overlap`` before the end, at a border."""
    if not overlap:
        return stop
    earliest = max(start + 1, stop - overlap)
    for border in _BORDERS[1:]:
        match = border.search(text, earliest, stop)
        if match and match.end() < stop:
            return match.end()
    return earliest
