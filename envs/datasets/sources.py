"""Rows of a question file or Hub data set as they are, one at a time, whatever the container.

Beside what :mod:`research_rl.envs.questions` reads (JSONL, parquet, the Hub): JSON arrays of any
size in little memory, tables (CSV, TSV), and an object that holds the rows (TriviaQA's ``Data``).
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from research_rl.envs.question_files import QuestionError, raw_rows

_BLOCK = 1 << 20  # characters read at once
_SPACE = re.compile(r"\s*")
_HEAD = re.compile(r'\s*\{\s*"Data"\s*:\s*\[|\s*\[')
_TABLES = {".csv": ",", ".tsv": "\t"}


def source_rows(source: str | Path, split: str | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of a file or Hub data set; the line is where a row starts, from 1.

    Args:
        source: a path or a Hugging Face name, ``owner/name`` or ``owner/name:config``.
        split: of a Hub data set.

    Raises:
        QuestionError: nothing there or a broken line; names file and line.
        ImportError: parquet or the Hub need a package that is not installed.
    """
    path = Path(source)
    if not path.is_file():
        yield from raw_rows(source, split)
    elif path.suffix.lower() in _TABLES:
        yield from _table_rows(path, _TABLES[path.suffix.lower()])
    elif _HEAD.match(_head(path)):
        yield from _array_rows(path)
    else:
        yield from raw_rows(source, None)


def _head(path: Path) -> str:
    """The beginning of a file, for a look at its container."""
    with path.open("rb") as file:
        data = file.read(256)
    return codecs.getincrementaldecoder("utf-8-sig")("replace").decode(data)


def _table_rows(path: Path, delimiter: str) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a table with a line of names; names are taken in lower case.

    A cell that holds a JSON list (PopQA's possible_answers) is that list.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names: list[str] = []
        line = 1
        try:
            for cells in reader:
                if not names:
                    names = [name.strip().lower() for name in cells]
                elif any(cell.strip() for cell in cells):
                    if len(cells) != len(names):
                        reason = f"must have {len(names)} columns ({', '.join(names)})"
                        raise QuestionError(path, line, f"{reason}, got {len(cells)}")
                    yield line, dict(zip(names, map(_cell, cells), strict=True))
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise QuestionError(path, line, f"must be UTF-8: {error}") from error
        except csv.Error as error:
            raise QuestionError(path, line, f"must be a table: {error}") from error


def _cell(text: str) -> Any:
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _array_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the items of a JSON array with the lines they start in."""
    with path.open(encoding="utf-8-sig") as file:
        try:
            yield from _Array(path, file)
        except UnicodeDecodeError as error:
            reason = f"must be UTF-8, got byte {error.object[error.start]:#04x}"
            raise QuestionError(path, None, reason) from error


class _Array:
    """A window over a file that slides from item to item."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.text, self.place, self.line = file.read(_BLOCK), 0, 1
        self.over = len(self.text) < _BLOCK

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        opening = _HEAD.match(self.text)
        assert opening is not None, "the container was looked at"
        self._pass(opening.end())
        decoder = json.JSONDecoder()
        while self._next() != "]":
            row, end = self._item(decoder)
            yield self.line, row
            self._pass(end)
            mark = self._next()
            if mark == ",":
                self._pass(self.place + 1)
                if self._next() == "]":
                    raise QuestionError(self.path, self.line, "must not end in a comma")
            elif mark != "]":
                found = self.text[self.place : self.place + 20]
                reason = f"must be a JSON array, got {found!r} after an item"
                raise QuestionError(self.path, self.line, reason)

    def _next(self) -> str:
        """The next character that is no space, "" at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.place)
            self._pass(match.end() if match else self.place)
            if self.place < len(self.text) or not self._more():
                return self.text[self.place : self.place + 1]

    def _item(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """The item that starts here and where it ends."""
        while True:
            try:
                row, end = decoder.raw_decode(self.text, self.place)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._more():
                    raise self._broken(error) from error
            else:
                # a number close to the end of the window may go on behind it: 1 of 1e+5
                if end + 3 < len(self.text) or not self._more():
                    return row, end

    def _broken(self, error: Exception) -> QuestionError:
        at = self.line
        if isinstance(error, json.JSONDecodeError):
            at += self.text.count("\n", self.place, error.pos)
            error = ValueError(error.msg)
        return QuestionError(self.path, at, f"must be a JSON array of objects: {error}")

    def _pass(self, place: int) -> None:
        self.line += self.text.count("\n", self.place, place)
        self.place = place

    def _more(self) -> bool:
        """Read on and forget what is behind; False at the end of the file."""
        if self.over:
            return False
        block = self.file.read(max(_BLOCK, len(self.text) - self.place))
        self.over = not block
        if block:
            self.text, self.place = self.text[self.place :] + block, 0
        return bool(block)
