"""Rows of question files: JSONL, a JSON array, parquet, one of these in a folder, the Hub."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from research_rl.envs.system import LineError

SPLIT_MARK = "#"
"""Between a source and the split of it that is meant."""
_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.-]+)?$")
_SUFFIXES = (".jsonl", ".json", ".parquet")


RawRow: TypeAlias = Mapping[str, Any]
"""A row of a question file or Hub data set, as its authors wrote it."""


class QuestionError(LineError):
    """Questions cannot be read."""


def raw_rows(source: str | Path, split: str | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of a file, of a folder's split or of a Hub data set, as they are there.

    Raises:
        QuestionError: nothing there, or a line that is no JSON.
        ImportError: parquet or the Hub need a package that is not installed.
    """
    yield from open_rows(source, split)[1]


def find_split(source: str | Path, names: Sequence[str]) -> str | None:
    """Return the first of these splits that a folder or a Hub data set has.

    Returns:
        None where it has none of them, and where there is nothing to choose: ``source`` is a file,
        says its split itself, or is not there.

    Raises:
        QuestionError: the Hub does not tell what the data set has.
        ImportError: the Hub needs a package that is not installed.
    """
    path = Path(source)
    if path.is_dir():
        there = {file.stem for file in path.iterdir() if file.suffix in _SUFFIXES}
    elif not path.exists() and _is_hub_name(source):
        there = set(_hub_splits(str(source)))
    else:
        return None
    return next((name for name in names if name in there), None)


def open_rows(
    source: str | Path, split: str | None
) -> tuple[str | Path, Iterator[tuple[int, Any]]]:
    """Return the file or data set that is read, and its (line, row)s.

    Raises:
        QuestionError: nothing there, or no split is named where there are several.
        ImportError: parquet or the Hub need a package that is not installed.
    """
    path = Path(source)
    if path.is_dir():
        path = _split_file(path, split)
    if path.is_file():
        return path, _file_rows(path)
    if _is_hub_name(source):
        return source, _hub_rows(str(source), split)
    raise QuestionError(source, None, "there is no such file of questions")


def _is_hub_name(source: str | Path) -> bool:
    return bool(_HUB_NAME.match(str(source))) and Path(source).suffix not in _SUFFIXES


def _split_file(folder: Path, split: str | None) -> Path:
    there = sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES)
    if split is None and there:
        example = f"{folder}{SPLIT_MARK}{Path(there[0]).stem}"
        raise QuestionError(folder, None, f"must be told which split: {example!r}; it has {there}")
    found = [folder / f"{split}{suffix}" for suffix in _SUFFIXES if f"{split}{suffix}" in there]
    if not found:
        raise QuestionError(folder, None, f"has no file of split {split!r}; it has {there}")
    return found[0]


def _file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        head = file.read(1024)
    if head[:4] == b"PAR1":
        return _parquet_rows(path)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        return _array_rows(path)
    return _line_rows(path)


def _decode(path: Path, data: bytes, first_line: int = 1) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        reason = f"must be UTF-8, got byte {data[error.start]:#04x}"
        raise QuestionError(path, line, reason) from error


def _line_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the objects of a JSONL file; blank lines are passed over."""
    with path.open("rb") as lines:
        for number, data in enumerate(lines, 1):
            text = _decode(path, data, number).strip()
            if text:
                try:
                    row = json.loads(text)
                except (ValueError, RecursionError) as error:
                    reason = f"must be a JSON object, got {text[:60]!r}: {error}"
                    raise QuestionError(path, number, reason) from error
                yield number, row


def _array_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the items of one JSON array with the lines they start in."""
    text = _decode(path, path.read_bytes())
    decoder, space = json.JSONDecoder(), re.compile(r"\s*")

    def skip(position: int) -> int:
        match = space.match(text, position)
        return match.end() if match else position

    def line(start: int, stop: int) -> int:
        return text.count("\n", start, stop)

    place = skip(text.index("[") + 1)
    number = 1 + line(0, place)
    while text[place : place + 1] != "]":
        try:
            row, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            at = number + (line(place, error.pos) if isinstance(error, json.JSONDecodeError) else 0)
            raise QuestionError(path, at, f"must be a JSON array of objects: {error}") from error
        yield number, row
        after = skip(end)
        comma = text[after : after + 1] == ","
        if not comma and text[after : after + 1] != "]":
            at = number + line(place, after)
            reason = f"must be a JSON array, got {text[after : after + 20]!r} after an item"
            raise QuestionError(path, at, reason)
        following = skip(after + 1) if comma else after
        number += line(place, following)
        place = following


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            f"reading parquet ({path}) needs pyarrow; do pip install -e '.[data]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(1024) for row in batch.to_pylist())
            yield from enumerate(rows, 1)
    except (OSError, ValueError) as error:
        raise QuestionError(path, None, f"is not a readable parquet file: {error}") from error


def _hub_rows(name: str, split: str | None) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a Hugging Face data set."""
    if split is None:
        example = f"{name}{SPLIT_MARK}train"
        raise QuestionError(name, None, f"a Hub data set must be told which split: {example!r}")
    return enumerate(_ask_hub("load_dataset", name, split=split), 1)


def _hub_splits(name: str) -> Iterable[str]:
    """Names of the splits of a Hugging Face data set."""
    splits: Iterable[str] = _ask_hub("get_dataset_split_names", name)
    return splits


def _ask_hub(what: str, name: str, **options: str) -> Any:
    """What a function of ``datasets`` says about ``owner/name:config``."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"there is no file {name}; reading it from the Hugging Face Hub needs datasets; "
            "do pip install -e '.[data]'"
        ) from error
    repository, _, config = name.partition(":")
    try:
        return getattr(datasets, what)(repository, config or None, **options)
    except Exception as error:
        reason = f"there is no such file, and the Hub does not give it: {error}"
        raise QuestionError(name, None, reason) from error


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
        yield from _streamed_array_rows(path)
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


def _streamed_array_rows(path: Path) -> Iterator[tuple[int, Any]]:
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
