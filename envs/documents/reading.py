"""What is read of a document: its text, its headings by place, the starts of its pages.

Places are characters of the text. For markdown, reStructuredText, plain text and code that is the
text of the file itself, so a place is one in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

READER = 2
"""Number of the rules by which files are read; a cache of another number is not used."""
MOST_TEXT = 20_000_000
"""Characters of one document; more is refused as no document."""


_LONGEST_HEAD = 500
"""Characters of a line that may be a heading of markdown."""


class UnreadableError(ValueError):
    """A document cannot be read; says why."""


@dataclass(frozen=True)
class HeadingMark:
    """A heading.

    Args:
        start: where its line begins, in characters.
        end: where what stands below it begins.
        level: 1 for the outermost.
        title: its words.
    """

    start: int
    end: int
    level: int
    title: str


@dataclass(frozen=True)
class Reading:
    """A document that has been read.

    Args:
        text: all of it.
        marks: its headings, in their order.
        title: what the document says it is called, "" if nothing.
        pages: where each page starts, in characters; empty for what has no pages.
        note: what should be told of how it was read, "" for nothing.
    """

    text: str
    marks: tuple[HeadingMark, ...] = ()
    title: str = ""
    pages: tuple[int, ...] = ()
    note: str = ""

    def to_row(self) -> dict[str, Any]:
        """Return what JSON can hold of it."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Reading:
        """Return the reading of such a row.

        Raises:
            KeyError, TypeError: the row is none.
        """
        marks = tuple(HeadingMark(**mark) for mark in row["marks"])
        return cls(row["text"], marks, row["title"], tuple(row["pages"]), row["note"])


def read_plain(kind: str, data: bytes) -> Reading:
    """Read a file that needs no package: ``md``, ``rst``, ``txt`` or ``code``.

    Raises:
        UnreadableError: it is no text.
    """
    text, note = decode(data)
    if kind == "md":
        title, start = _front_matter(text)
        return Reading(text, tuple(_markdown_marks(text, start)), title, note=note)
    if kind == "rst":
        return Reading(text, tuple(_rst_marks(text)), note=note)
    if kind == "code":
        return Reading(text, tuple(_code_marks(text)), note=note)
    return Reading(text, note=note)


def decode(data: bytes) -> tuple[str, str]:
    """Return the text of bytes, and a note where they are not UTF-8.

    Lines end with one newline each.

    Raises:
        UnreadableError: they are no text.
    """
    note = ""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data:
        raise UnreadableError("must be text, got bytes of value 0: a binary file")
    else:
        encoding = "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise UnreadableError(f"must be UTF-16 as its first bytes say: {error}") from error
        try:
            text, note = data.decode("cp1252"), "not UTF-8, read as Windows-1252"
        except UnicodeDecodeError:
            wrong = f"{data[error.start]:#04x} at byte {error.start}"
            raise UnreadableError(f"must be UTF-8 or Windows-1252, got {wrong}") from error
    if len(text) > MOST_TEXT:
        raise UnreadableError(f"must have at most {MOST_TEXT} characters, got {len(text)}")
    return text.replace("\r\n", "\n").replace("\r", "\n"), note


def _lines(text: str, start: int = 0) -> Iterator[tuple[int, str]]:
    """Yield where each line begins, and the line without its end."""
    for line in text[start:].split("\n"):
        yield start, line
        start += len(line) + 1


def _front_matter(text: str) -> tuple[str, int]:
    """Return the title that YAML before the text states, and where the text begins."""
    if not text.startswith("---\n"):
        return "", 0
    end = text.find("\n---\n", 3)
    if end < 0:
        return "", 0
    match = re.search(r"^title:[ \t]*(\S.*)$", text[: end + 1], re.MULTILINE)
    return (match[1].strip().strip("\"'") if match else ""), end + 5


_HASHES = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_UNDER = re.compile(r" {0,3}(=+|-+)[ \t]*$")


def _markdown_marks(text: str, start: int) -> Iterator[HeadingMark]:
    """Yield the headings of markdown, ``# A`` and underlined ones, not those in code blocks."""
    fence, running = "", False  # running: the line before belongs to a paragraph
    before: tuple[int, str] | None = None  # a paragraph's first line: an underline makes it a head
    for place, line in _lines(text, start):
        fenced = _FENCE.match(line)
        hashes = _HASHES.match(line) if len(line) <= _LONGEST_HEAD else None
        under = _UNDER.match(line) if before else None
        if fence:
            if fenced and fenced[1].startswith(fence) and not line.strip(" \t`~"):
                fence = ""
            continue
        if fenced:
            fence = fenced[1]
        elif hashes and (title := plain_title(hashes[2] or "")):
            yield HeadingMark(place, place + len(line) + 1, len(hashes[1]), title)
        elif before and under:
            level = 1 if under[1][0] == "=" else 2
            if title := plain_title(before[1]):
                yield HeadingMark(before[0], place + len(line) + 1, level, title)
        elif line.strip() and not hashes:
            first = (
                not running
                and len(line) <= _LONGEST_HEAD
                and not line.startswith((" " * 4, "\t", ">", "|", "- ", "* "))
            )
            before, running = ((place, line) if first else None), True
            continue
        before, running = None, False


_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()]*\)")


def plain_title(text: str) -> str:
    """Return a heading without the marks of markdown and HTML around its words.

    >>> plain_title("The `run` of **[Bakset](b.md)** {#anchor}")
    'The run of Bakset'
    """
    text = re.sub(r"\{#[^{}]*\}\s*$|<[^<>]*>", "", _LINK.sub(r"\1", text))
    return " ".join(re.sub(r"[`*]|(?<!\w)_+|_+(?!\w)", "", text).split())


_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1*[ \t]*$")


def _rst_marks(text: str) -> Iterator[HeadingMark]:
    """Yield the headings of reStructuredText; the first style of underline is the outermost."""
    lines = list(_lines(text))
    levels: dict[str, int] = {}
    for number in range(1, len(lines)):
        (place, title), (_, under) = lines[number - 1], lines[number]
        words = title.strip()
        if not _ADORNMENT.match(under) or not words or _ADORNMENT.match(title):
            continue
        if len(under.rstrip()) < max(3, len(title.rstrip())):
            continue
        over = lines[number - 2] if number > 1 else (0, "")
        both = over[1].strip() == under.strip()
        if not both and (title != title.lstrip() or over[1].strip()):
            continue
        level = levels.setdefault(under[0] + "=" * both, len(levels) + 1)
        end = lines[number][0] + len(under) + 1
        yield HeadingMark(over[0] if both else place, end, level, plain_title(words))


_DEFINES = re.compile(
    r"(?:(?:export|default|public|private|protected|static|abstract|final|async|pub|unsafe)\s+)*"
    r"(?:def|class|fn|func|function|interface|struct|enum|trait|impl|type|module|object|record)\s+"
    r"(?:\([^()]*\)\s*)?([A-Za-z_$][\w$.]*)"
)


def _code_marks(text: str) -> Iterator[HeadingMark]:
    """Yield the definitions that begin a line; what defines them stays in their text."""
    for place, line in _lines(text):
        if match := _DEFINES.match(line):
            yield HeadingMark(place, place, 1, match[1])
