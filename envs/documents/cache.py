"""What was read of files before, by their contents; beside the corpus, as ``NAME.readings``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from research_rl.envs.documents.reading import READER, Reading
from research_rl.envs.system import write_whole

ReadingKey = tuple[str, str]
"""SHA-256 of the bytes, and the kind as which they were read."""


class Readings:
    """A file of readings, which grows as documents are read.

    A killed process leaves what it had read; a last line that is not whole is passed over. Memory
    holds where each reading stands, not the readings.

    Args:
        path: the file; need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[ReadingKey, tuple[int, int]] = {}
        self._end = 0
        if path.is_file():
            with path.open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n") and (key := _key_of(line)):
                        self._places[key] = (self._end, len(line))
                    self._end += len(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("ab+")
        if self._end and self._read(self._end - 1, 1) != b"\n":
            self._end += self._file.write(b"\n")

    def __enter__(self) -> Readings:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __getitem__(self, key: ReadingKey) -> Reading:
        return Reading.from_row(json.loads(self._read(*self._places[key]))["reading"])

    def add(self, key: ReadingKey, reading: Reading) -> None:
        """Keep a reading."""
        digest, kind = key
        row = {"reader": READER, "sha256": digest, "kind": kind, "reading": reading.to_row()}
        line = json.dumps(row).encode("ascii") + b"\n"
        self._file.write(line)
        self._file.flush()
        self._places[key] = (self._end, len(line))
        self._end += len(line)

    def keep(self, wanted: Collection[ReadingKey]) -> None:
        """Forget the others, of files that are gone or have changed."""
        if set(self._places) <= set(wanted) and self._end == sum(
            size for _, size in self._places.values()
        ):
            return
        write_whole(self.path, self._lines(set(wanted)))

    def _lines(self, wanted: set[ReadingKey]) -> Iterator[bytes]:
        for key, place in self._places.items():
            if key in wanted:
                yield self._read(*place)

    def _read(self, start: int, size: int) -> bytes:
        self._file.flush()
        self._file.seek(start)
        return self._file.read(size)


def _key_of(line: bytes) -> ReadingKey | None:
    try:
        row = json.loads(line)
        if row["reader"] == READER:
            Reading.from_row(row["reading"])
            return str(row["sha256"]), str(row["kind"])
    except (ValueError, KeyError, TypeError):
        pass
    return None
