"""Files of rows: JSONL, JSON arrays, tables and parquet, each told from how it begins.

``file_rows(Path("psgs.tsv.gz"))`` yields (line, row), one row at a time.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research_rl.envs.questions.bad_rows import BadRows, QuestionError, not_utf8
from research_rl.envs.questions.compressed import inner_suffix, is_compressed, open_bytes
from research_rl.envs.questions.json_array import array_rows, begins_an_array

log = logging.getLogger(__name__)
TABLES = {".csv": ",", ".tsv": "\t"}
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
Unnamed = Mapping[int, tuple[str, ...]]
QUESTION_COLUMNS: Unnamed = {2: ("question", "answers"), 3: ("id", "question", "answers")}
PASSAGE_COLUMNS: Unnamed = {2: ("id", "text"), 3: ("id", "text", "title")}
"""Columns of tables without a line of names: DPR's questions, MS MARCO's and DPR's passages."""
_NAMED = frozenset({"contents", "text", "passage", "body", "question", "query", "input"})
_LONGEST_CELL = 1 << 28  # characters; a passage may be a whole page


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
    if begins_an_array(head):
        return "array"
    if head.lstrip().startswith("{") or not head.strip():
        return "lines"
    if inner_suffix(path) in TABLES or "\t" in head.partition("\n")[0]:
        return "table"
    return None


def file_rows(
    path: Path, unnamed: Unnamed = QUESTION_COLUMNS, bad: BadRows | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file of any container; what is none is read as JSONL, and says so.

    Args:
        path: the file.
        unnamed: names of the columns of a table that has no line of names, by their number.
        bad: takes lines that cannot be read, which are then passed over; without it the first one
            is an error.
    """
    kind = container_of(path)
    if kind == "table":
        rows = table_rows(path, unnamed, bad)
    elif kind == "parquet":
        rows = _parquet_rows(path)
    else:
        rows = array_rows(path) if kind == "array" else _line_rows(path, bad)
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


def _line_rows(path: Path, bad: BadRows | None) -> Iterator[tuple[int, Any]]:
    """Yield the objects of a JSONL file; blank lines are passed over."""
    with open_bytes(path) as lines:
        for number, data in enumerate(lines, 1):
            try:
                text = data.decode("utf-8-sig").strip()
                row = json.loads(text) if text else None
            except UnicodeDecodeError as error:
                _tell(not_utf8(path, number, error), bad, error)
            except (ValueError, RecursionError) as error:
                reason = f"must be a JSON object, got {text[:60]!r}: {error}"
                _tell(QuestionError(path, number, reason), bad, error)
            else:
                if text:
                    yield number, row


def _tell(told: QuestionError, bad: BadRows | None, error: Exception | None = None) -> None:
    """Note a bad line, or raise."""
    if bad is None:
        raise told from error
    bad.add(told.line, told.reason)


@dataclass(frozen=True)
class _Shape:
    """How a table is written: what is between its cells, its columns, whether quotes are meant."""

    delimiter: str
    names: tuple[str, ...] | None
    quoted: bool


def _shape_of(path: Path, unnamed: Unnamed) -> _Shape:
    """Look at the first line of a table.

    Raises:
        QuestionError: it has no line of names, and another number of columns than known layouts.
    """
    with open_bytes(path) as file:
        line = file.readline(1 << 20).decode("utf-8-sig", "replace").rstrip("\r\n")
    between = TABLES.get(inner_suffix(path), "\t")
    cells = [cell.strip() for cell in line.split(between)]
    if "\t" in line and between != "\t" and not _are_names(cells):  # DPR's *.qa.csv
        between, cells = "\t", [cell.strip() for cell in line.split("\t")]
    if _are_names(cells):
        return _Shape(between, None, True)
    if between == ",":
        cells = next(csv.reader([line]), [])
    if len(cells) not in unnamed:
        layouts = " or ".join(", ".join(names) for names in unnamed.values())
        reason = f"must have a line of names, or the columns {layouts}, got {line[:60]!r}"
        raise QuestionError(path, 1, reason)
    names = unnamed[len(cells)]
    log.warning("%s: has no line of names, so its columns are %s", path, ", ".join(names))
    # MS MARCO's quotes are part of the text, and may stay open
    written = between == "," or "question" in names or _is_quoted(cells[1])
    return _Shape(between, names, written)


def _are_names(cells: Sequence[str]) -> bool:
    return any(cell.strip('"').lower() in _NAMED for cell in cells)


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell.startswith('"') and cell.endswith('"')


def table_rows(
    path: Path, unnamed: Unnamed = QUESTION_COLUMNS, bad: BadRows | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a table; names of columns are taken in lower case, cells are text.

    Args:
        path: ``.csv`` has commas between its cells, or tabs, any other name tabs.
        unnamed: names of the columns of a file without a line of names, by their number.
        bad: takes rows with another number of cells, which are then passed over.
    """
    csv.field_size_limit(_LONGEST_CELL)
    shape = _shape_of(path, unnamed)
    how: dict[str, Any] = {"quoting": csv.QUOTE_MINIMAL if shape.quoted else csv.QUOTE_NONE}
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=shape.delimiter, strict=True, **how)
        known = list(shape.names or ())
        line = 1
        try:
            for cells in reader:
                if not known:
                    known = [name.strip().lower() for name in cells]
                    if twice := sorted({n for n in known if n and known.count(n) > 1}):
                        reason = f"must name each column once, got {', '.join(twice)} again"
                        raise QuestionError(path, line, reason)
                elif any(cell.strip() for cell in cells):
                    if len(cells) == len(known):
                        yield line, dict(zip(known, cells, strict=True))
                    else:
                        reason = f"must have {len(known)} columns ({', '.join(known)})"
                        _tell(QuestionError(path, line, f"{reason}, got {len(cells)}"), bad)
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise QuestionError(path, line, f"must be UTF-8: {error}") from error
        except csv.Error as error:
            raise QuestionError(path, line, f"must be a table: {error}") from error


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
