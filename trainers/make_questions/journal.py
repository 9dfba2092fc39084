"""The journal of a making: what the model wrote and what became of each draft, line by line.

Whoever runs the same command again reads it and goes on; a last line that is not whole is cut off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research_rl.envs.system import lines_of, write_whole

MAKING = "journal.jsonl"


class KeptCall(NamedTuple):
    """What came of a call of the model.

    Args:
        text: that it wrote.
        error: why it wrote nothing; None where it did.
    """

    text: str
    error: str | None = None


class Journal:
    """Calls of the model and verdicts, on disk as they come.

    Args:
        path: the file.
        settings: all that decides the outcome; a journal of other settings is refused.
        former: the same as earlier versions wrote it; such a journal goes on with ``settings``.

    Raises:
        ValueError: it was begun with other settings.
    """

    def __init__(
        self, path: Path, settings: dict[str, Any], former: Sequence[dict[str, Any]] = ()
    ) -> None:
        self._calls: dict[str, KeptCall] = {}
        self._tried: set[str] = set()
        self.verdicts: dict[str, str] = {}
        """Draft id -> why it was refused, "" where it was not."""
        path.parent.mkdir(parents=True, exist_ok=True)
        held = path.read_bytes() if path.is_file() else b""
        whole = held[: held.rfind(b"\n") + 1]
        rows = [json.loads(line) for line in lines_of(whole.decode("utf-8"))]
        first = json.loads(json.dumps(settings))
        if rows and rows[0] in [{"settings": json.loads(json.dumps(one))} for one in former]:
            rows[0] = {"settings": first}
            whole = _line(rows[0]) + whole[whole.index(b"\n") + 1 :]
            held = write_whole(path, [whole]).read_bytes()
        if rows and rows[0] != {"settings": first}:
            known = rows[0].get("settings", {})
            differ = [k for k in {*known, *first} if known.get(k) != first.get(k)]
            raise ValueError(
                f"{path.parent} was begun with other settings ({', '.join(sorted(differ))}); give "
                "--out another folder, or remove it"
            )
        for row in rows[1:]:
            if "call" in row:
                self._calls[row["call"]] = KeptCall(row["text"], row.get("error"))
            elif "tried" in row:
                self._tried.add(row["tried"])
            else:
                self.verdicts[row["draft"]] = row["reason"]
        self._file = path.open("r+b" if held else "wb")
        self._file.truncate(len(whole))
        self._file.seek(len(whole))
        if not rows:
            self._add({"settings": first})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def calls(self) -> int:
        """How often a model has been asked."""
        return len(self._calls)

    @property
    def errors(self) -> list[str]:
        """What went wrong in the calls that failed, in the order in which they were made."""
        return [one.error for one in self._calls.values() if one.error is not None]

    def call(self, prompt: str) -> KeptCall | None:
        """Return what came of a prompt, None where the model was not asked yet."""
        return self._calls.get(_digest(prompt))

    def add_call(self, prompt: str, text: str, error: str | None = None) -> None:
        """Keep what the model wrote, or why it wrote nothing."""
        self._calls[_digest(prompt)] = KeptCall(text, error)
        failed = {} if error is None else {"error": error}
        self._add({"call": _digest(prompt), "text": text, **failed})

    def was_tried(self, prompt: str) -> bool:
        """Whether an earlier run ended at this prompt."""
        return _digest(prompt) in self._tried

    def add_try(self, prompt: str) -> None:
        """Keep that this run ends at a prompt."""
        self._add({"tried": _digest(prompt)})

    def add_verdict(self, draft: str, reason: str) -> None:
        """Keep what became of a draft."""
        self.verdicts[draft] = reason
        self._add({"draft": draft, "reason": reason})

    def _add(self, row: dict[str, Any]) -> None:
        self._file.write(_line(row))
        self._file.flush()


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode("ascii") + b"\n"


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:32]
