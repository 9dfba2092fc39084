"""The flight recorder: every training rollout, so that a run can be played again and compared.

``records/000012.jsonl.gz`` holds the iteration that began with weights that had learned from 12: a
line that says what the iteration was, then a line for each rollout. The same run writes the same
bytes.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from research_rl.agents.types import Rollout
from research_rl.trainers.callbacks import RunCallback, cosmetic, rollouts_of, run_folder
from research_rl.trainers.ranks import gather

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
        reward: value, f1, em, format_error and prediction.
        advantage: the mean over its tokens.
        finish_reason: why it ended.
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
    """A file of the flight recorder cannot be read."""


def record_of(rollout: Rollout, advantage: float | None = None) -> Record:
    """Return what is kept of a rollout."""
    sequence, question = rollout.sequence, rollout.question
    mask = sequence.loss_mask
    return Record(
        question={
            "id": question.id,
            "text": question.text,
            "answers": list(question.answers),
            "metadata": dict(question.metadata),
        },
        seed=rollout.seed,
        prompt_ids=list(sequence.prompt_ids),
        response_ids=list(sequence.response_ids),
        sampled=[int(written) for written in mask],
        logprobs=[x for x, written in zip(sequence.logprobs, mask, strict=True) if written],
        turns=list(rollout.turns),
        queries=list(rollout.queries),
        passage_ids=[list(found) for found in rollout.passage_ids],
        reward=asdict(rollout.reward),
        advantage=advantage,
        finish_reason=rollout.finish_reason,
    )


class Records:
    """The recorder's folder: one file an iteration, whole or not there.

    Args:
        folder: made when something is written.
        max_bytes: of all files together; the oldest are dropped. None is no limit.
    """

    def __init__(self, folder: Path, max_bytes: int | None = None) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    def iterations(self) -> list[int]:
        """Return the numbers of the iterations that are there, in order."""
        return sorted(self._files())

    def write(self, iteration: int, weights: int, records: Sequence[Record]) -> Path:
        """Write an iteration, and drop the oldest ones that are over the limit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        head = {"format": _FORMAT, "iteration": iteration, "weights": weights, "rows": len(records)}
        rows: Iterable[Mapping[str, Any]] = [head, *map(asdict, records)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = self._path(iteration)
        partial = path.with_name(f".{path.name}.partial")
        try:
            # without the time, so that equal runs write equal bytes
            partial.write_bytes(gzip.compress(text.encode("utf-8", "backslashreplace"), mtime=0))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        self._drop_oldest()
        return path

    def read(self, iteration: int) -> Flight:
        """Return an iteration.

        Raises:
            FileNotFoundError: it is not there.
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
            lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
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
        """Remove iteration ``first`` and those behind it."""
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


class FlightRecorder(RunCallback):
    """Records every training rollout as token ids, log-probs, passages, seed and reward.

    ``research replay`` plays the records again, and compares those of two runs. A resumed run goes
    on behind its checkpoint: what was recorded later is recorded anew.

    Args:
        max_megabytes: of all records together, compressed; the oldest iterations are dropped. None
            is no limit.
        folder: where to, below the run's folder.

    Raises:
        ValueError: the limit is not positive.
    """

    label = "records"

    def __init__(self, max_megabytes: float | None = 1000.0, folder: str = FOLDER) -> None:
        super().__init__()
        if max_megabytes is not None and not max_megabytes > 0:
            raise ValueError(f"max_megabytes must be positive or null, got {max_megabytes}")
        self.max_megabytes = max_megabytes
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget what an earlier run recorded behind the point where this one goes on."""
        if trainer.is_global_zero:
            with cosmetic("clear the flight recorder"):
                resumed = trainer.ckpt_path is not None
                self._records(trainer).forget(_learned(pl_module) if resumed else 0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Record the iteration that has just been learned from."""
        rollouts = rollouts_of(pl_module, "train_rollouts")
        worth = rollouts_of(pl_module, "train_advantages")
        records = gather([record_of(r, a) for r, a in zip(rollouts, worth, strict=True)])
        if trainer.is_global_zero:
            iteration = _learned(pl_module) - 1
            with cosmetic("record the rollouts"):
                records_of_run = self._records(trainer)
                versions = [v for rollout in rollouts for v in rollout.sequence.versions]
                records_of_run.write(iteration, min(versions, default=iteration), records)
                self.written = records_of_run.folder

    def _records(self, trainer: pl.Trainer) -> Records:
        limit = None if self.max_megabytes is None else int(self.max_megabytes * 1e6)
        return Records(run_folder(trainer) / self.folder, limit)


def _learned(pl_module: pl.LightningModule) -> int:
    iteration: Any = pl_module.iteration
    return int(iteration)


__all__ = ["Flight", "FlightRecorder", "Record", "RecordError", "Records", "record_of"]
