"""A folder of documents made into a corpus: read, split, cleared of what stands there twice.

``build_documents("manuals", "corpus.jsonl")`` writes a line for each passage::

    {"id": "guide/install.md#3", "contents": "\\"Guide > Install\\"\\nRun the ...",
     "source": "guide/install.md", "start": 812, "end": 1760}

``start`` and ``end`` are characters of the document's text. The same folder gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from research_rl.envs.documents.cache import ReadingKey, Readings
from research_rl.envs.documents.kinds import MODULES, PACKAGES, find_files
from research_rl.envs.documents.near import NearTexts
from research_rl.envs.documents.reading import Reading, UnreadableError, read_plain
from research_rl.envs.documents.report import CorpusReport
from research_rl.envs.documents.split import split_reading
from research_rl.envs.documents.worker import Worker
from research_rl.envs.system import alone_in, write_whole

SIZE, OVERLAP = 1000, 150
"""Characters of a passage, and of what it repeats of the one before."""
LARGEST = 50.0
"""Megabytes of a file."""
_SHORT = 8
"""Different words below which passages are not compared: short ones are alike by chance."""


@dataclass(frozen=True)
class _Passage:
    """A passage on its way into the corpus."""

    id: str
    title: str
    text: str
    source: str
    start: int
    end: int
    page: int | None

    def line(self) -> str:
        row: dict[str, Any] = {"id": self.id, "contents": f'"{self.title}"\n{self.text}'}
        row |= {"source": self.source, "start": self.start, "end": self.end}
        row |= {} if self.page is None else {"page": self.page}
        return json.dumps(row, ensure_ascii=False) + "\n"


def build_documents(
    folder: str | Path,
    out: str | Path,
    *,
    size: int = SIZE,
    overlap: int = OVERLAP,
    skip: frozenset[str] = frozenset(),
    drop_near: bool = False,
    seconds: float = 60.0,
    largest: float = LARGEST,
    advance: Callable[[int, int], object] = lambda done, total: None,
) -> CorpusReport:
    """Read the documents of a folder and write their passages as a corpus.

    What was read is kept beside it, as ``OUT.readings``: only other contents are read again.

    Args:
        folder: the documents, at any depth.
        out: the JSONL file to write.
        size: characters of a passage at most.
        overlap: characters that a passage repeats of the one before it, about.
        skip: kinds to leave out.
        drop_near: leave out passages that are nearly the same as an earlier one, too.
        seconds: that an HTML, PDF or Word file may take.
        largest: megabytes of a file.
        advance: called with the files that are done, and with all.

    Raises:
        NotADirectoryError: there is no such folder.
        ImportError: files are there whose reader is not installed; says which and what to do.
        ValueError: no document in it can be read, or a number makes no sense.
        FileExistsError: another process writes the same corpus.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise NotADirectoryError(f"there is no folder of documents {folder}")
    list(split_reading(Reading(""), "", size, overlap))
    report = CorpusReport(near_dropped=drop_near)
    found = find_files(folder, skip)
    report.passed = found.passed
    report.unreadable += [(f"{path}/", reason) for path, reason in found.closed]
    files = [one for one in found.files if (folder / one[0]).resolve() != out.resolve()]
    _check_readers(Counter(kind for _, kind in files))
    passages: list[_Passage] = []
    what = (f"is where another process makes {out.name}", "give --out another file")
    with (
        alone_in(out.with_name(f".{out.name}.building"), *what),
        Readings(out.with_name(f"{out.name}.readings")) as readings,
        Worker(seconds) as worker,
    ):
        reader = _Reader(folder, readings, worker, largest, report)
        for number, (path, kind) in enumerate(files, 1):
            passages += reader.passages(path, kind, size, overlap)
            advance(number, len(files))
        readings.keep(reader.keys)
        kept = _without_repeats(passages, report)
        _note_sizes(folder, kept, report)
        write_whole(out, (one.line() for one in kept))
    return report


class _Reader:
    """Reads files, or takes what was read of them before."""

    def __init__(
        self, folder: Path, readings: Readings, worker: Worker, largest: float, report: CorpusReport
    ) -> None:
        self._folder, self._readings, self._worker = folder, readings, worker
        self._largest, self._report = largest, report
        self.keys: set[ReadingKey] = set()

    def passages(self, path: str, kind: str, size: int, overlap: int) -> list[_Passage]:
        """Return the passages of a file; none where it cannot be read."""
        if (reading := self.read(path, kind)) is None:
            return []
        name = path.rpartition("/")[2]
        name = name if kind == "code" else name.rpartition(".")[0] or name
        found = list(_passages(path, name, reading, size, overlap))
        self._report.files[kind] += 1
        self._report.empty += [] if found else [path]
        return found

    def read(self, path: str, kind: str) -> Reading | None:
        """Return what a file holds; None, and a line in the report, where it cannot be read."""
        try:
            reading = self._read(self._folder / path, kind)
        except UnreadableError as error:
            self._report.unreadable.append((path, str(error)))
            return None
        except OSError as error:
            self._report.unreadable.append((path, error.strerror or str(error)))
            return None
        if reading.note:
            self._report.notes.append((path, reading.note))
        return reading

    def _read(self, file: Path, kind: str) -> Reading:
        held = file.stat().st_size
        if held > self._largest * 1e6:
            most = f"must have at most {self._largest:g} MB, got {held / 1e6:.0f}; see --largest"
            raise UnreadableError(most)
        data = file.read_bytes()
        if not data.strip():
            raise UnreadableError("is empty")
        key = (hashlib.sha256(data).hexdigest(), kind)
        if key not in self._readings:
            self._report.again += 1
            if kind in MODULES:
                reading, digest = self._worker.read(file, kind)
                key = (digest, kind)
            else:
                reading = read_plain(kind, data)
            if key not in self._readings:
                self._readings.add(key, reading)
        self.keys.add(key)
        return self._readings[key]


def _check_readers(kinds: Counter[str]) -> None:
    lacking = [kind for kind in kinds if kind in MODULES and find_spec(MODULES[kind]) is None]
    if lacking:
        counts = ", ".join(f"{kinds[kind]} {kind} files need {PACKAGES[kind]}" for kind in lacking)
        raise ImportError(
            f"{counts}, which is not installed: pip install -e '.[documents]', or leave "
            f"them out with --skip {' '.join(lacking)}"
        )


def _passages(
    path: str, name: str, reading: Reading, size: int, overlap: int
) -> Iterator[_Passage]:
    for number, piece in enumerate(split_reading(reading, name, size, overlap), 1):
        text = reading.text[piece.start : piece.end]
        title = piece.title.replace('"', "'")
        place = (piece.start, piece.end, piece.page)
        yield _Passage(f"{path}#{number}", title, text, path, *place)


def _without_repeats(passages: list[_Passage], report: CorpusReport) -> list[_Passage]:
    """Leave out passages whose text an earlier one has, letter case and white space aside."""
    first: dict[bytes, str] = {}
    kept: list[_Passage] = []
    for one in passages:
        folded = " ".join(one.text.split()).casefold().encode("utf-8", "surrogatepass")
        earlier = first.setdefault(hashlib.sha256(folded).digest(), one.id)
        if earlier == one.id:
            kept.append(one)
        else:
            report.same.append((one.id, earlier))
    near = NearTexts(one.text for one in kept)
    added: list[str] = []
    left: list[_Passage] = []
    for one in kept:
        place, share = near.nearest(one.text) if near.distinct(one.text) >= _SHORT else (None, 0.0)
        if place is not None:
            report.near.append((one.id, added[place], share))
        if place is None or not report.near_dropped:
            near.add(one.text)
            added.append(one.id)
            left.append(one)
    return left


def _note_sizes(folder: Path, kept: list[_Passage], report: CorpusReport) -> None:
    if not kept:
        raise ValueError(_nothing(folder, report))
    report.lengths = [len(one.text) for one in kept]
    report.titles = len({one.title for one in kept})


def _nothing(folder: Path, report: CorpusReport) -> str:
    """Say why no passage came out of a folder."""
    why = [f"{path}: {reason}" for path, reason in report.unreadable[:3]]
    why += [f"{count} files: {reason}" for reason, count in report.passed.most_common(3)]
    told = f" ({'; '.join(why)})" if why else ""
    return f"{folder} must hold documents with text, got none{told}"
