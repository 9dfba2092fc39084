"""Readers of HTML, PDF and Word files, each with a package; they run in a process of their own."""

from __future__ import annotations

import codecs
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from research_rl.envs.documents.reading import (
    MOST_TEXT,
    HeadingMark,
    Reading,
    UnreadableError,
    decode,
)

_MOST_PAGES = 5000
_MOST_UNPACKED = 200_000_000
_HEADS = ("h1", "h2", "h3", "h4", "h5", "h6")
# a head is no such tag: where a page leaves out its end, the parser puts the whole body into it
_NO_TEXT = (
    *("title", "script", "style", "noscript", "template", "svg", "nav", "iframe", "object"),
    *("base", "link", "meta"),
)
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BROADER = {
    **{"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"},
    **{"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "tis-620": "cp874"},
    **{"x-sjis": "cp932", "x-gbk": "gb18030", "windows-874": "cp874", "x-euc-jp": "euc_jp"},
    **{"windows-31j": "cp932", "utf-16": "utf-8", "utf-16le": "utf-8", "utf-16be": "utf-8"},
}
"""Encodings of Python that hold all of what a page may declare, by name and by Python's name."""
_BLOCKS = (
    *("p", "div", "section", "article", "main", "header", "footer", "aside", "li", "ul", "ol"),
    *("dl", "dt", "dd", "tr", "table", "pre", "blockquote", "figure", "figcaption", "form", "hr"),
)
_HEADING = re.compile("\x01([1-6])\x02([^\x01\x02]*)\x03")


class _Text:
    """A text that is put together, with its headings."""

    def __init__(self) -> None:
        self.marks: list[HeadingMark] = []
        self._parts: list[str] = []
        self.size = 0

    def add(self, text: str) -> None:
        """Put a text behind."""
        self._parts.append(text)
        self.size += len(text)
        if self.size > MOST_TEXT:
            raise UnreadableError(f"must have at most {MOST_TEXT} characters of text")

    def head(self, level: int, title: str) -> None:
        """Put a heading behind, on a line of its own."""
        title = " ".join(title.split())
        if title:
            start = self.size
            self.add(f"{title}\n")
            self.marks.append(HeadingMark(start, self.size, level, title))

    def reading(self, title: str = "", pages: tuple[int, ...] = ()) -> Reading:
        """Return what was put together."""
        text = "".join(self._parts)
        if not text.strip():
            raise UnreadableError("holds no text; scanned pages need OCR first")
        return Reading(text, tuple(self.marks), " ".join(title.split()), pages)


def read_rich(kind: str, data: bytes) -> Reading:
    """Read a file that needs a package: ``html``, ``pdf`` or ``docx``.

    Raises:
        UnreadableError: there is no text in it, or too much.
        Exception: whatever the package raises about a broken file.
    """
    return {"html": _read_html, "pdf": _read_pdf, "docx": _read_docx}[kind](data)


def _read_html(data: bytes) -> Reading:
    from bs4 import BeautifulSoup

    text, note = _decode_html(data)
    soup = BeautifulSoup(text.replace("\0", ""), "html.parser")
    title = soup.title.get_text(" ") if soup.title else ""
    for tag in soup(_NO_TEXT):
        tag.decompose()
    for tag in soup(_HEADS):
        words = " ".join(tag.get_text(" ").split())
        tag.replace_with(f"\n\n\x01{tag.name[1]}\x02{words}\x03\n" if words else "")
    for tag in soup(("td", "th")):
        tag.append(" | ")
    for tag in soup("br"):
        tag.replace_with("\n")
    for tag in soup(_BLOCKS):
        tag.insert_before("\n")
        tag.append("\n")
    made, place = _Text(), 0
    whole = re.sub(r"[ \t]*\n\s*\n\s*", "\n\n", re.sub(r"[ \t\xa0]+", " ", soup.get_text()))
    whole = whole.strip()
    for match in _HEADING.finditer(whole):
        made.add(whole[place : match.start()])
        made.head(int(match[1]), match[2])
        place = match.end() + (whole[match.end() : match.end() + 1] == "\n")
    made.add(whole[place:])
    return replace(made.reading(title), note=note)


def _decode_html(data: bytes) -> tuple[str, str]:
    """Return the text of a page in the encoding that it declares, and a note if it is not that.

    Names are read as browsers read them (https://encoding.spec.whatwg.org): a page that calls
    itself gb2312 may use all of gb18030.
    """
    declared = re.search(rb"charset\s*=\s*[\"']?\s*([\w.:-]+)", data[:2048])
    if declared is None or data.startswith(_MARKS):
        return decode(data)
    name = declared[1].decode("ascii", "replace")
    try:
        codec = codecs.lookup(_BROADER.get(name.lower(), name)).name
    except LookupError:
        codec = ""
    for tried in filter(None, (_BROADER.get(codec), codec)):
        try:
            return data.decode(tried).replace("\r\n", "\n").replace("\r", "\n"), ""
        except (UnicodeDecodeError, LookupError):  # the latter of a codec that is not of text
            continue
    text, note = decode(data)
    return text, note or f"not {name} as it says, read as UTF-8"


def _read_pdf(data: bytes) -> Reading:
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(data), strict=False)
    if reader.is_encrypted and not reader.decrypt(""):
        raise UnreadableError("must not be locked by a password")
    if len(reader.pages) > _MOST_PAGES:
        raise UnreadableError(f"must have at most {_MOST_PAGES} pages, got {len(reader.pages)}")
    made, starts = _Text(), []
    texts = []
    for page in reader.pages:
        starts.append(made.size)
        texts.append(page.extract_text().replace("\0", "").strip() + "\n")
        made.add(texts[-1])
    for level, title, number in _outline(reader):
        if 0 <= number < len(starts):
            inside = re.search(r"\s+".join(map(re.escape, title.split())), texts[number])
            start = starts[number] + (inside.start() if inside else 0)
            made.marks.append(HeadingMark(start, start, level, title))  # its words stay in the text
    made.marks.sort(key=lambda mark: (mark.start, mark.level))
    return made.reading(pages=tuple(starts))


def _outline(reader: Any) -> Iterator[tuple[int, str, int]]:
    """Yield level, title and page of a PDF's bookmarks; a broken table of them is none."""
    found: list[tuple[int, str, int]] = []
    try:
        stack: list[tuple[int, Any]] = [(1, iter(reader.outline))]
        while stack and len(found) < _MOST_PAGES:
            level, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
            elif isinstance(entry, list):
                stack.append((level + 1, iter(entry)))
            else:
                title = " ".join(str(entry.title).replace("\0", "").split())
                number = reader.get_destination_page_number(entry)
                if title and number is not None:
                    found.append((min(level, 6), title, number))
    except Exception:  # bookmarks are a help, and a file that breaks them may still be read
        return
    yield from found


def _read_docx(data: bytes) -> Reading:
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        unpacked = sum(entry.file_size for entry in packed.infolist())
    if unpacked > _MOST_UNPACKED:
        most = _MOST_UNPACKED // 10**6
        raise UnreadableError(f"must unpack to at most {most} MB, got {unpacked // 10**6} MB")
    from docx import Document
    from docx.table import Table

    document = Document(io.BytesIO(data))
    made = _Text()
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            for row in block.rows:
                made.add(" | ".join(" ".join(cell.text.split()) for cell in row.cells) + "\n")
            made.add("\n")
            continue
        style = str(block.style.name or "") if block.style is not None else ""
        level = re.fullmatch(r"[Hh]eading ([1-9])", style)
        if level or style == "Title":
            made.head(min(int(level[1]) + 1, 7) if level else 1, block.text)
        elif block.text.strip():
            made.add(f"{block.text}\n\n")
    return made.reading(document.core_properties.title or "")
