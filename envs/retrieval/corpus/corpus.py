"""A corpus of passages on disk: JSONL, memory-mapped, any line in constant time.

Each line is ``{"id": ..., "contents": ...}`` with contents = title, newline, body (the layout of
FlashRAG, Search-R1 and ReSearch); ``{"id", "title", "text"}`` is read as the same thing, and a
title beside contents whose first line is another stands in front. A passage may be empty: it is
kept, so that no row moves, and never found.
"""

from __future__ import annotations

import json
import logging
import mmap
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from research_rl.envs.questions import BadRows
from research_rl.envs.system import LineError
from research_rl.envs.types import Passage

log = logging.getLogger(__name__)
Offsets = npt.NDArray[np.int64]


class CorpusError(LineError):
    """A corpus cannot be read."""


def parse_passage(line: bytes) -> Passage:
    """Return the passage that one JSONL line holds.

    Raises:
        ValueError: the line is no such object; the message says why.
    """
    try:
        row: Any = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8, got byte {error.object[error.start]:#04x}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"must be a JSON object, got {line[:60]!r}: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON object, got {type(row).__name__}")
    identity = row.get("id", row.get("_id"))
    if isinstance(identity, bool) or not isinstance(identity, (str, int)):
        raise ValueError(f"id must be a string or an integer, got {identity!r}")
    contents, title = row.get("contents"), row.get("title")
    bare = contents is None  # a text has no title of its own
    contents = row.get("text") if bare else contents
    if not isinstance(contents, str):
        raise ValueError(f"contents must be text, got {contents!r}; fields: {sorted(row)}")
    if isinstance(title, str | int) and not isinstance(title, bool) and str(title).strip():
        first, newline, _ = contents.partition("\n")
        name = str(title).strip().strip('"')
        if bare or not newline or first.strip().strip('"') != name:
            contents = f'"{title}"\n{contents}'
    return Passage(id=str(identity), contents=contents, source=_source(row))


def _source(row: dict[str, Any]) -> str:
    """Where a passage stands: its file, with the page or else the characters if they are known."""
    source, start, end, page = (row.get(name) for name in ("source", "start", "end", "page"))
    if not isinstance(source, str) or not source:
        return ""
    if isinstance(page, int):
        return f"{source}#page={page}"
    if isinstance(start, int) and isinstance(end, int):
        return f"{source}#char={start},{end}"
    return source


class Corpus(Sequence[Passage]):
    """The passages of a JSONL file, read from a memory map when asked for.

    Args:
        path: the JSONL file.
        offsets: (n, 2) int64, start and end byte of each passage's line, as ``Corpus.scan``
            returned it; None scans the file, in which no line may be bad.

    Raises:
        CorpusError: a line cannot be read, or the offsets are those of another file.
    """

    def __init__(self, path: str | Path, offsets: Offsets | None = None) -> None:
        self.path = Path(path)
        self.offsets = self.scan(self.path) if offsets is None else offsets
        with self.path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self.offsets) and int(self.offsets[-1, 1]) > len(self._bytes):
            raise CorpusError(self.path, None, "is shorter than its table of offsets; rebuild it")

    @staticmethod
    def scan(
        path: str | Path,
        advance: Callable[[int], object] | None = None,
        bad: BadRows | None = None,
    ) -> Offsets:
        """Check every line of a corpus and return where they lie: (n, 2) int64, start and end.

        Blank lines are passed over, passages without text are counted in a warning. Takes 24 bytes
        of memory a passage.

        Args:
            path: the JSONL file.
            advance: called with the number of bytes of each line, to drive a progress bar.
            bad: takes bad lines, which are then left out with a warning; None refuses them.

        Raises:
            CorpusError: no such file, no passages, an id used twice or bad lines (all are counted,
                the first three named); with ``bad`` only where most are bad.
        """
        if not Path(path).is_file():
            raise CorpusError(path, None, "there is no such corpus file")
        found = BadRows() if bad is None else bad
        offsets, ids, empty = _look_at_lines(Path(path), found, advance)
        if np.any(np.diff(np.sort(ids)) == 0):
            offsets = offsets[_first_of_each(path, offsets, found)]
        if found and (bad is None or found.are_most(len(offsets))):
            raise CorpusError(path, found.line, found.reason)
        if not len(offsets):
            raise CorpusError(path, None, "holds no passages")
        if found:
            log.warning("%s", found.warning(path))
        if empty:
            log.warning(
                "%d of %d passages of %s are empty: they are kept and never found",
                empty,
                len(offsets),
                path,
            )
        return offsets

    def forget(self) -> None:
        """Give back the memory of the pages that were read; they are read again when needed."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._bytes.madvise(mmap.MADV_DONTNEED)

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | Sequence[Passage]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, end = self.offsets[index]
        return parse_passage(self._bytes[start:end])

    def __iter__(self) -> Iterator[Passage]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r}, {len(self)} passages)"

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path, Offsets]]:
        return Corpus, (self.path, self.offsets)


def _look_at_lines(
    path: Path, bad: BadRows, advance: Callable[[int], object] | None
) -> tuple[Offsets, npt.NDArray[np.int64], int]:
    """Return where good lines lie, a hash of each id, and how many passages are empty."""
    spans, ids = array("q"), array("q")
    start, empty = 0, 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    passage = parse_passage(line)
                except ValueError as error:
                    bad.add(number, str(error))
                else:
                    ids.append(hash(passage.id))
                    spans.extend((start, start + len(line)))
                    empty += not passage.contents.strip()
            start += len(line)
            if advance is not None:
                advance(len(line))
    offsets = np.frombuffer(spans, np.int64).reshape(-1, 2)
    return offsets, np.frombuffer(ids, np.int64), empty


def _first_of_each(path: str | Path, offsets: Offsets, bad: BadRows) -> npt.NDArray[np.bool_]:
    """Return which passages have an id that none before has; called where two hashes are the same.

    The others are bad lines.
    """
    lines_of: dict[str, int] = {}
    kept = np.ones(len(offsets), bool)
    starts = {int(start): row for row, start in enumerate(offsets[:, 0])}
    place = 0
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if (row := starts.get(place)) is not None:
                identity = parse_passage(line).id
                first = lines_of.setdefault(identity, number)
                if first != number:
                    kept[row] = False
                    bad.add(number, f"id {identity!r} is already used in line {first}")
            place += len(line)
    return kept
