"""The file of rows: a line of JSON for each question that a method answered.

Rows are appended batch by batch. A run that was killed leaves at most an unfinished last line: it
is skipped, and cut off before the next row is written. Of two rows about the same question the
later one counts, so that a question which failed can be asked again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from research_rl.envs import Passage
from research_rl.envs.protocols import RESEARCH
from research_rl.envs.questions import known_hops
from research_rl.envs.system import write_whole
from research_rl.trainers.evaluate.measures.answers import measure_prediction
from research_rl.trainers.evaluate.measures.self_correction import self_correction

if TYPE_CHECKING:
    from research_rl.agents import Prediction

Row = dict[str, Any]


class Cell(NamedTuple):
    """A cell of the grid: a method with a model on a data set."""

    dataset: str
    model: str
    method: str

    def __str__(self) -> str:
        return f"{self.method} with {self.model} on {self.dataset}"


class Key(NamedTuple):
    """What a row is about: the same key is never counted twice."""

    dataset: str
    model: str
    method: str
    id: str


def key_of(row: Row) -> Key:
    """Return what a row is about."""
    return Key(row["dataset"], row["model"], row["method"], row["id"])


def row_of(cell: Cell, prediction: Prediction) -> Row:
    """Return one prediction with everything that is measured of it, ready for JSON.

    Each name of ``MEASURES`` is a field; ``self_correction`` holds the counts of
    :class:`SelfCorrection`; of passages the ids and titles are kept, their text is in the steps.
    """
    question = prediction.question
    return {
        **cell._asdict(),
        "id": question.id,
        "question": question.text,
        "answers": list(question.answers),
        "prediction": prediction.text,
        **measure_prediction(prediction),
        "finish_reason": prediction.finish_reason,
        "format_error": prediction.format_error,
        "hops": known_hops(question.metadata.get("hops")),
        "gold": [str(i) for i in question.metadata.get("gold_ids") or ()],
        "gold_titles": list(question.metadata.get("supporting_titles") or ()),
        "queries": list(prediction.queries),
        "passages": [[_passage(p) for p in found] for found in prediction.passages],
        "steps": [{"role": step.role, "text": step.text} for step in prediction.steps],
        **_language(prediction),
        "self_correction": asdict(self_correction(prediction)),
        "judge": {},
        "error": prediction.error,
    }


def _language(prediction: Prediction) -> dict[str, str]:
    """The name of the steps' protocol, where it is not ReSearch's."""
    protocol = prediction.protocol
    return {} if protocol == RESEARCH else {"protocol": protocol.name}


def _passage(passage: Passage) -> dict[str, str]:
    row = {"id": passage.id, "title": passage.contents.partition("\n")[0].strip().strip('"')}
    return row | ({"source": passage.source} if passage.source else {})


class RowFile:
    """The rows of an evaluation on disk.

    Args:
        path: the file; its folder is created at the first write.

    Raises:
        ValueError: a line in the middle of the file is no row; nothing is changed then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[Key, Row] = {}
        self._file: IO[bytes] | None = None
        self._end = 0  # of the last whole line that was read
        if path.is_file():
            self._read()

    @property
    def rows(self) -> Mapping[Key, Row]:
        """Every row, the latest of each key."""
        return self._rows

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows; they are on disk when this returns."""
        file = self._open()
        for row in rows:
            self._rows[key_of(row)] = row
            file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())

    def rewrite(self, order: Iterable[Key]) -> None:
        """Write each row once, those of ``order`` first and in its order; whole or not at all."""
        self.close()
        keys = dict.fromkeys([key for key in order if key in self._rows])
        keys |= dict.fromkeys(self._rows)
        self._rows = {key: self._rows[key] for key in keys}
        write_whole(self.path, map(_line, self._rows.values()))
        self._end = self.path.stat().st_size

    def close(self) -> None:
        """Close the file; another append opens it again."""
        if self._file is not None:
            self._end = self._file.tell()
            self._file.close()
            self._file = None

    def _open(self) -> IO[bytes]:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file() and self._end < self.path.stat().st_size:
                os.truncate(self.path, self._end)
            self._file = self.path.open("ab")
        return self._file

    def _read(self) -> None:
        """Read the rows; a last line without its newline is unfinished and skipped."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                row = _parsed(line)
                if row is None:
                    raise ValueError(
                        f"{self.path}:{number}: must be a row of an evaluation, got "
                        f"{line[:60]!r}; mend or remove that line, or use another folder"
                    )
                self._rows[key_of(row)] = row
                self._end += len(line)


def _parsed(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
        key_of(row)
    except (ValueError, KeyError, TypeError):
        return None
    # a number of hops that came out of a table stood there as text
    return {**row, "hops": known_hops(row["hops"])} if "hops" in row else dict(row)


def _line(row: Row) -> bytes:
    """A row as ASCII JSON, so that no text of a model can break its line."""
    known = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
    }
    return json.dumps(known, separators=(",", ":")).encode("ascii") + b"\n"
