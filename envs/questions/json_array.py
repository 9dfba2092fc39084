"""A reader of JSON arrays that holds one item at a time, however large the file is."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from research_rl.envs.questions.bad_rows import QuestionError, not_utf8
from research_rl.envs.questions.compressed import open_bytes

# TriviaQA and SQuAD have their array in an object, behind its version or domain
_FIELD = r'"\w+"\s*:\s*(?:"[^"]*"|[-\d.]+|null|true|false)\s*,\s*'
_ARRAY = re.compile(rf'\s*\{{\s*(?:{_FIELD})*"[Dd]ata"\s*:\s*\[|\s*\[')
_SPACE = re.compile(r"\s*")
_BLOCK = 1 << 20  # bytes read at once


def begins_an_array(text: str) -> bool:
    """Return whether a text begins as a JSON array does, or as an object that holds one as data."""
    return _ARRAY.match(text) is not None


def array_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the items of a JSON array with the lines they start in."""
    with open_bytes(path) as file:
        yield from _Array(path, file)


class _Array:
    """A window over a file that slides from item to item, so that memory stays small."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.place, self.line, self.over = "", 0, 1, False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        while (opening := _ARRAY.match(self.text)) is None and self._more():
            pass
        assert opening is not None, "the file was seen to begin so"
        bare = "{" not in opening[0]
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
        self._pass(self.place + 1)
        if bare and self._next():
            found = self.text[self.place : self.place + 20]
            reason = f"must be one JSON array, got {found!r} behind its end"
            raise QuestionError(self.path, self.line, reason)

    def _next(self) -> str:
        """Move to the next character that is no space and return it; "" at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.place)
            self._pass(match.end() if match else self.place)
            if self.place < len(self.text) or not self._more():
                return self.text[self.place : self.place + 1]

    def _item(self, decoder: json.JSONDecoder) -> tuple[Any, int]:
        """Return the item that starts here, and where it ends."""
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
        """Read on and forget what was passed; False at the end of the file."""
        if self.over:
            return False
        data = self.file.read(max(_BLOCK, len(self.text) - self.place))
        self.over = not data
        try:
            more = self.decoder.decode(data, final=self.over)
        except UnicodeDecodeError as error:
            before = self.text.count("\n", self.place) + error.object.count(b"\n", 0, error.start)
            raise not_utf8(self.path, self.line + before, error) from error
        if data:
            self.text, self.place = self.text[self.place :] + more, 0
        return bool(data)
