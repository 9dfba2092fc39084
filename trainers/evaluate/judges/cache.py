"""Verdicts on disk, found by content: a file to which lines of JSON are appended.

A damaged line, such as one that was being written when the process was killed, is skipped with a
warning, and its case is asked again. Failures are not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedVerdict:
    """One line of the cache."""

    key: str
    model: str
    prompt: str
    correct: bool
    rationale: str
    attempts: int


def content_key(*parts: object) -> str:
    """Return the SHA-256 of the parts as JSON, in hexadecimal: equal parts, equal key."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class JudgeCache:
    """The verdicts of any number of judges, in one file.

    Args:
        path: the file, created with its folder at the first verdict; None keeps verdicts in memory
            only.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._lock = threading.Lock()
        self._rows: dict[str, CachedVerdict] = {}
        self._torn = False
        if self.path is not None and self.path.is_file():
            self._read(self.path)

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> CachedVerdict | None:
        """Return the verdict with this key, None if there is none."""
        with self._lock:
            return self._rows.get(key)

    def put(
        self, key: str, model: str, prompt: str, correct: bool, rationale: str, attempts: int
    ) -> None:
        """Keep a verdict; it has been written to the file when this returns."""
        row = CachedVerdict(key, model, prompt, correct, rationale, attempts)
        with self._lock:
            self._rows[key] = row
            if self.path is not None:
                self._append(self.path, row)

    def _append(self, path: Path, row: CachedVerdict) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(row), ensure_ascii=True) + "\n"
        with path.open("a", encoding="ascii") as file:
            # begin a new line after a torn one, so that only the torn line is lost
            file.write("\n" + line if self._torn else line)
        self._torn = False

    def _read(self, path: Path) -> None:
        with path.open("rb") as lines:
            for number, data in enumerate(lines, 1):
                self._torn = not data.endswith(b"\n")
                if data.strip() and (row := _row(data)) is not None:
                    self._rows[row.key] = row
                elif data.strip():
                    log.warning("%s:%d: passed over a spoilt line of verdicts", path, number)


def _row(data: bytes) -> CachedVerdict | None:
    try:
        row = CachedVerdict(**json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (row.key, row.model, row.prompt, row.rationale)
    plain = all(isinstance(text, str) for text in texts) and isinstance(row.correct, bool)
    return row if plain and type(row.attempts) is int else None
