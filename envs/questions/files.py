"""Readers of question files: each container becomes (line, row), one row at a time.

They read JSONL, a JSON array (bare, or under the key ``Data`` of an object), parquet, tables (CSV
and TSV with a line of names), a folder that holds one of the first three for each split, one that
``save_to_disk`` of ``datasets`` wrote, and a data set of the Hugging Face Hub. Text may be
compressed by gzip or zstandard::

    _, rows = open_rows("hotpot_dev_distractor_v1.json")
    next(rows)  # (1, {"_id": "5a8b57f25542995d1e6f1371", "question": "Were Scott ...", ...})
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from research_rl.envs.questions.compressed import (
    COMPRESSED,
    inner_suffix,
    is_compressed,
    open_bytes,
)
from research_rl.envs.system import LineError

SPLIT_MARK = "#"
"""Separates a source from the name of its split: ``data/nq#dev``."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_SUFFIXES = (".jsonl", ".json", ".parquet")
_TABLES = {".csv": ",", ".tsv": "\t"}
_NOT_ON_HUB = (*_SUFFIXES, *_TABLES, *COMPRESSED, ".txt")
_ARRAY = re.compile(r'\s*\{\s*"Data"\s*:\s*\[|\s*\[')  # TriviaQA has its array in an object
_SPACE = re.compile(r"\s*")
_BLOCK = 1 << 20  # bytes read at once
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
_LONGEST_CELL = 1 << 28  # characters; a passage may be a whole page


RawRow: TypeAlias = Mapping[str, Any]
"""A row of a question file or Hub data set, as its authors wrote it."""


class QuestionError(LineError):
    """Questions cannot be read."""


def open_rows(
    source: str | Path, split: str | None = None
) -> tuple[str | Path, Iterator[tuple[int, Any]]]:
    """Return the file or data set that is read, and its rows as they are there.

    Args:
        source: a file, a folder or a Hugging Face name, ``owner/name`` or ``owner/name:config``.
        split: of a folder or of a Hub data set; a file has all its rows read.

    Returns:
        The source (of a folder the file of the split) and an iterator of (line, row). The line is
        where a row starts, from 1; of parquet and the Hub it is the number of the row. Broken
        content raises QuestionError, with file and line, when the iterator comes to it.

    Raises:
        QuestionError: nothing there, or no split is named where there are several.
        ImportError: parquet or the Hub need a package that is not installed.
    """
    path = Path(source)
    if is_saved_data_set(path):
        return path, enumerate(_saved_rows(path, split), 1)
    if path.is_dir():
        path = _split_file(path, split)
    if path.is_file():
        return path, _file_rows(path)
    if is_hub_name(source):
        if split is None:
            reason = f"a Hub data set must be told which split: {f'{source}{SPLIT_MARK}train'!r}"
            raise QuestionError(source, None, reason)
        return source, enumerate(hub_rows(str(source), split), 1)
    raise QuestionError(source, None, "there is no such file of questions")


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
    elif not path.exists() and is_hub_name(source):
        there = set(_ask_hub("get_dataset_split_names", str(source)))
    else:
        return None
    return next((name for name in names if name in there), None)


def is_hub_name(source: str | Path) -> bool:
    """Say whether this may name a data set of the Hub; a name that ends as a file's does not."""
    return bool(_HUB_NAME.fullmatch(str(source))) and Path(source).suffix not in _NOT_ON_HUB


def hub_rows(name: str, split: str, **options: Any) -> Iterator[RawRow]:
    """Yield the rows of a Hugging Face data set.

    Args:
        name: ``owner/name`` or ``owner/name:config``.
        split: as the data set calls it.
        options: further ones of ``datasets.load_dataset``; with ``streaming=True`` rows come as
            they are downloaded and nothing is kept on disk.

    Raises:
        QuestionError: the Hub does not give it.
        ImportError: ``datasets`` is not installed.
    """
    rows = _ask_hub("load_dataset", name, split=split, **options)
    try:
        yield from rows
    except Exception as error:  # a stream may break off
        raise _not_given(name, error) from error


def _ask_hub(what: str, name: str, **options: Any) -> Iterable[Any]:
    """Return what a function of ``datasets`` returns for ``owner/name:config``."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"there is no file {name}; reading it from the Hugging Face Hub needs datasets; "
            "do pip install -e '.[data]'"
        ) from error
    repository, _, config = name.partition(":")
    try:
        found: Iterable[Any] = getattr(datasets, what)(repository, config or None, **options)
    except Exception as error:
        raise _not_given(name, error) from error
    return found


def _not_given(name: str, error: Exception) -> QuestionError:
    reason = f"there is no such file, and the Hub does not give it: {error}"
    return QuestionError(name, None, reason)


def _split_file(folder: Path, split: str | None) -> Path:
    there = sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES)
    if split is None and there:
        example = f"{folder}{SPLIT_MARK}{Path(there[0]).stem}"
        raise QuestionError(folder, None, f"must be told which split: {example!r}; it has {there}")
    found = [folder / f"{split}{suffix}" for suffix in _SUFFIXES if f"{split}{suffix}" in there]
    if not found:
        raise QuestionError(folder, None, f"has no file of split {split!r}; it has {there}")
    return found[0]


def is_saved_data_set(folder: Path) -> bool:
    """Return whether ``save_to_disk`` of ``datasets`` wrote a folder: a data set, or its splits."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _saved_rows(folder: Path, split: str | None) -> Iterator[RawRow]:
    """Yield the rows of such a folder, from a memory map."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"reading a data set saved to disk ({folder}) needs datasets; do pip install -e "
            "'.[data]'"
        ) from error
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise QuestionError(folder, None, f"is not a readable data set: {error}") from error
    if isinstance(found, dict):
        if split not in found:
            example = f"{folder}{SPLIT_MARK}{next(iter(found))}"
            reason = f"must be told which split: {example!r}; it has {sorted(found)}"
            raise QuestionError(folder, None, reason)
        found = found[split]
    yield from found


def container_of(path: Path) -> str | None:
    """Return what a file of rows is, told from how it begins; None if that is nothing known.

    A table has no mark of its own: it is known by its suffix, or by a tab in its first line.

    Returns:
        "parquet", "array" (of JSON), "table", "lines" (JSONL) or None.

    Raises:
        QuestionError: it is compressed, and damaged.
    """
    try:
        with open_bytes(path) as file:
            data = file.read(1 << 16)
    except _DAMAGED as error:
        raise _cut_short(path, 1, error) from error
    if data[:4] == b"PAR1":
        return "parquet"
    head = codecs.getincrementaldecoder("utf-8-sig")("replace").decode(data)
    if _ARRAY.match(head):
        return "array"
    if head.lstrip().startswith("{") or not head.strip():
        return "lines"
    if inner_suffix(path) in _TABLES or "\t" in head.partition("\n")[0]:
        return "table"
    return None


def _file_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file of any container; what is none is read as JSONL, and says so."""
    readers = {"parquet": _parquet_rows, "array": _array_rows, "table": table_rows}
    rows = readers.get(container_of(path) or "lines", _line_rows)(path)
    return _unbroken(path, rows) if is_compressed(path) else rows


def _unbroken(path: Path, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Yield rows of a compressed file, and name it if it is cut short or damaged."""
    number = 0
    try:
        for number, row in rows:
            yield number, row
    except _DAMAGED as error:
        raise _cut_short(path, number + 1, error) from error


def _cut_short(path: Path, line: int, error: Exception) -> QuestionError:
    return QuestionError(path, line, f"is compressed and damaged or cut short: {error}")


def _line_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the objects of a JSONL file; blank lines are passed over."""
    with open_bytes(path) as lines:
        for number, data in enumerate(lines, 1):
            try:
                text = data.decode("utf-8-sig").strip()
                if text:
                    yield number, json.loads(text)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from error
            except (ValueError, RecursionError) as error:
                reason = f"must be a JSON object, got {text[:60]!r}: {error}"
                raise QuestionError(path, number, reason) from error


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> QuestionError:
    return QuestionError(path, line, f"must be UTF-8, got byte {error.object[error.start]:#04x}")


def table_rows(
    path: Path, names: Sequence[str] | None = None, lists: bool = True
) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a table; names of columns are taken in lower case.

    Args:
        path: ``.csv`` has commas between its cells, any other name tabs.
        names: of the columns of a file without a line of names, in which quotes mean nothing
            (MS MARCO's collection); None takes the first line.
        lists: a cell that holds a JSON list (PopQA's possible_answers) is that list; False leaves
            every cell as text.
    """
    csv.field_size_limit(_LONGEST_CELL)
    how: dict[str, Any] = {"delimiter": _TABLES.get(inner_suffix(path), "\t"), "strict": True}
    if names is not None:
        how["quoting"] = csv.QUOTE_NONE
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, **how)
        known = list(names or ())
        line = 1
        try:
            for cells in reader:
                if not known:
                    known = [name.strip().lower() for name in cells]
                elif any(cell.strip() for cell in cells):
                    if len(cells) != len(known):
                        reason = f"must have {len(known)} columns ({', '.join(known)})"
                        raise QuestionError(path, line, f"{reason}, got {len(cells)}")
                    yield line, dict(zip(known, map(_cell, cells) if lists else cells, strict=True))
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


def _array_rows(path: Path) -> Iterator[tuple[int, Any]]:
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
            raise _not_utf8(self.path, self.line + before, error) from error
        if data:
            self.text, self.place = self.text[self.place :] + more, 0
        return bool(data)
