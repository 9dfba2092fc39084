"""Files of recorded rollouts, one for each iteration.

``records/000012.jsonl.gz`` holds iteration 12, which began with weights that had learned from 12: a
line about the iteration, then a line for each rollout. Equal runs write equal bytes.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research_rl.envs.system import clear_partial, lines_of, write_whole

if TYPE_CHECKING:
    from research_rl.agents import Rollout

FOLDER = "records"
_FORMAT = 1
_FILE = re.compile(r"(\d+)\.jsonl\.gz")


@dataclass(frozen=True)
class Record:
    """One recorded rollout; R tokens of response, P of prompt.

    Args:
        question: id, text, answers and metadata.
        seed: what it was sampled with.
        prompt_ids: [P].
        response_ids: [R], sampled and given.
        sampled: [R], 1 where the policy wrote and 0 where a result stands.
        logprobs: of the sampled tokens alone, in order, under the sampling distribution.
        turns: the policy's own text, one entry a turn.
        queries: what was searched for.
        passage_ids: what each query found, best first.
        reward: value, f1, em, format_error, prediction, and the parts of a sum.
        advantage: the mean over its tokens.
        finish_reason: why it ended.
        opened: what the prompt had opened of the response, see Opened; None for nothing.
    """

    question: dict[str, Any]
    seed: int | None
    prompt_ids: list[int]
    response_ids: list[int]
    sampled: list[int]
    logprobs: list[float]
    turns: list[str]
    queries: list[str]
    passage_ids: list[list[str]]
    reward: dict[str, Any]
    advantage: float | None
    finish_reason: str
    opened: list[str] | None = None


_COLUMNS = (
    "seed",
    "prompt_ids",
    "response_ids",
    "turns",
    "queries",
    "passage_ids",
    "finish_reason",
)
"""What a record takes from a rollout's row as it stands."""

Numbered = list[tuple[int, Record]]
"""Records with their places in the iteration."""


@dataclass(frozen=True)
class Flight:
    """One recorded iteration.

    Args:
        iteration: its number, from 0.
        weights: iterations that the weights which sampled it had learned from.
        records: its rollouts, in order.
    """

    iteration: int
    weights: int
    records: list[Record]


class RecordError(ValueError):
    """A file of records cannot be read."""


def record_of(rollout: Rollout, advantage: float | None = None) -> Record:
    """Return the record of a rollout.

    Raises:
        ValueError: it has no token ids.
    """
    row, mask = rollout.to_row(), rollout.sequence.loss_mask
    return Record(
        question={"id": row["question_id"], "text": row["question"]}
        | {name: row[name] for name in ("answers", "metadata")},
        sampled=[int(written) for written in mask],
        logprobs=[x for x, written in zip(row["logprobs"], mask, strict=True) if written],
        reward={k: v for k, v in asdict(rollout.reward).items() if k != "parts" or v},
        advantage=advantage,
        opened=row.get("opened"),
        **{name: row[name] for name in _COLUMNS},
    )


def _row_of(record: Record) -> dict[str, Any]:
    row = asdict(record)
    return row if row["opened"] is not None else {k: v for k, v in row.items() if k != "opened"}


class Records:
    """The folder of records; each file is written whole or not at all.

    Args:
        folder: created at the first write.
        max_bytes: limit for all files together, kept by dropping the oldest; None for no limit.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    def iterations(self) -> list[int]:
        """Return the numbers of the recorded iterations, in order."""
        return sorted(self._files())

    def write(self, iteration: int, weights: int, records: Sequence[Record]) -> Path:
        """Write an iteration, and remove the oldest ones while the limit is exceeded."""
        head = {"format": _FORMAT, "iteration": iteration, "weights": weights, "rows": len(records)}
        rows: Iterable[Mapping[str, Any]] = [head, *map(_row_of, records)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # no time stamp, so that equal runs write equal bytes
        data = gzip.compress(text.encode("utf-8", "backslashreplace"), mtime=0)
        path = write_whole(self._path(iteration), [data])
        self._drop_oldest()
        return path

    def read(self, iteration: int) -> Flight:
        """Return an iteration.

        Raises:
            FileNotFoundError: it is not recorded.
            RecordError: its file is damaged or of another version.
        """
        path = self._path(iteration)
        if not path.is_file():
            there = self.iterations()
            span = f"{there[0]} to {there[-1]}" if there else "none"
            raise FileNotFoundError(
                f"iteration {iteration} must have been recorded in {self.folder}, got {span}"
            )
        try:
            lines = lines_of(gzip.decompress(path.read_bytes()).decode("utf-8"))
            head, *rows = map(json.loads, lines)
            if head["format"] != _FORMAT or head["rows"] != len(rows):
                raise ValueError(f"its head says {head}")
            names = {item.name for item in fields(Record)}
            records = [Record(**{k: v for k, v in row.items() if k in names}) for row in rows]
            return Flight(int(head["iteration"]), int(head["weights"]), records)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise RecordError(
                f"{path} must be a whole file of the flight recorder, got {error}; remove it"
            ) from error

    def forget(self, first: int) -> None:
        """Remove iteration ``first``, all later ones, and what a killed run half wrote."""
        clear_partial(self.folder)
        for iteration, path in self._files().items():
            if iteration >= first:
                path.unlink(missing_ok=True)

    def _path(self, iteration: int) -> Path:
        return self.folder / f"{iteration:06d}.jsonl.gz"

    def _files(self) -> dict[int, Path]:
        if not self.folder.is_dir():
            return {}
        found = ((_FILE.fullmatch(path.name), path) for path in self.folder.iterdir())
        return {int(match[1]): path for match, path in found if match}

    def _drop_oldest(self) -> None:
        if self._max_bytes is None:
            return
        files = self._files()
        sizes = {iteration: path.stat().st_size for iteration, path in files.items()}
        total = sum(sizes.values())
        for iteration in sorted(files)[:-1]:  # the newest stays, however large
            if total <= self._max_bytes:
                break
            files[iteration].unlink(missing_ok=True)
            total -= sizes[iteration]
