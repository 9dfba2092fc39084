"""Rollouts sampled one iteration ahead, while the policy learns from those of the current one.

The rollouts of iteration 8 are sampled during the updates of iteration 7, with the weights that
iteration 7 began with. Which weights sample which rollouts is fixed and does not depend on timing.
Rollouts that wait are kept in the checkpoint, so a resumed run goes on exactly.
"""

from __future__ import annotations

import copy
import gzip
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from research_rl.agents import Engine, Rollout
from research_rl.agents.policy import LMPolicy
from research_rl.envs import Question
from research_rl.trainers.algorithms import Algorithm
from research_rl.trainers.distributed import gather
from research_rl.trainers.settings import Updates

log = logging.getLogger(__name__)


@dataclass
class Collected:
    """The rollouts of one iteration on this rank.

    Args:
        rollouts: group by group.
        num_sampled: number of rollouts that were sampled, including those that were replaced.
        asked: ids of the iteration's questions, in order.
    """

    rollouts: list[Rollout]
    num_sampled: int
    asked: list[str]

    def stamp(self, version: int) -> Collected:
        """Record which weights sampled the turns, unless the engine has done so; return itself.

        Args:
            version: number of iterations that the weights had learned from.
        """
        for rollout in self.rollouts:
            if not rollout.sequence.versions:
                rollout.sequence.versions = [version] * len(rollout.turns)
        return self

    def to_row(self) -> dict[str, Any]:
        """Return it ready for JSON, each rollout as its row."""
        return {**vars(self), "rollouts": [rollout.to_row() for rollout in self.rollouts]}


class Ahead:
    """Samples the next iteration's rollouts in a thread, and keeps them until they are needed.

    An engine in this process samples from a copy of the policy, which takes the memory of the
    weights a second time. Rollout servers hold weights of their own, so no copy is made.

    Args:
        make_engine: makes the engine that samples from the copy.
        options: what decides how rollouts are sampled, as text. Waiting rollouts of a checkpoint
            with other ones are dropped.
    """

    def __init__(self, make_engine: Callable[[LMPolicy], Engine], options: str = "") -> None:
        self._make_engine = make_engine
        self._options = options
        self._sampler: tuple[LMPolicy, Engine] | None = None
        self._ready: Collected | None = None
        self._kept: Any = None

    @torch.no_grad()
    def sampler(self, policy: LMPolicy, engine: Engine) -> tuple[LMPolicy, Engine]:
        """Return a policy and an engine that keep sampling with the current weights.

        Args:
            policy: the one that is about to learn.
            engine: of that policy, already synced.
        """
        if engine.holds_weights:
            # a Hugging Face tokenizer must not be used by two threads at once
            return LMPolicy(policy.model, copy.deepcopy(policy.tokenizer)), engine
        if self._sampler is None:
            twin = copy.deepcopy(policy).requires_grad_(False)
            self._sampler = twin, self._make_engine(twin)
        else:
            twin = self._sampler[0]
            pairs = zip(twin.state_dict().values(), policy.state_dict().values(), strict=True)
            for kept, own in pairs:
                kept.copy_(own)
        return self._sampler

    def close(self) -> None:
        """Close the engine of the copy."""
        if self._sampler is not None:
            self._sampler[1].close()

    @contextmanager
    def running(self, collect: Callable[[], Collected]) -> Iterator[None]:
        """Run ``collect`` in a thread during the ``with`` block, and wait for it at its end.

        An exception of ``collect`` is raised there.
        """
        with ThreadPoolExecutor(1, "ahead") as thread:
            future = thread.submit(collect)
            yield
            self._ready = future.result()

    def take(self, questions: Sequence[Question]) -> Collected | None:
        """Return the rollouts that were sampled for these questions, None if there are none."""
        self._unpack()
        ready, self._ready = self._ready, None
        if ready is not None and ready.asked != [q.id for q in questions]:
            log.warning(
                "the rollouts that were sampled ahead are for other questions (has the batch size "
                "changed?); this iteration is sampled anew"
            )
            return None
        return ready

    def drop(self, tell: bool = True) -> None:
        """Forget the rollouts that wait, those of a checkpoint too; the policy is another one now.

        Args:
            tell: say it in the log, if there are some.
        """
        waits = self._ready is not None or self._kept is not None
        self._ready = self._kept = None
        if waits and tell:
            log.warning(
                "the rollouts that were sampled ahead are of the weights that were replaced: they "
                "are dropped, and the iteration is sampled anew"
            )

    def state(self) -> dict[str, Any] | None:
        """Return the waiting rollouts of all ranks for a checkpoint; every rank must call it."""
        self._unpack()  # a validation that was owed saves before any rollouts are taken
        own = None if self._ready is None else self._ready.to_row()
        ranks = gather([own])
        if any(one is None for one in ranks):
            return None
        data = gzip.compress(json.dumps(ranks).encode(), mtime=0)
        kept = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return {"rollouts": kept, "options": self._options}

    def load(self, state: dict[str, Any] | None, rank: int, world_size: int) -> None:
        """Take over the rollouts of a checkpoint; the number of ranks may have changed.

        Those that were sampled with other options than this run has are dropped, with a warning.
        """
        self._kept = None if state is None else (state["rollouts"], rank, world_size)
        if state is not None and state.get("options", self._options) != self._options:
            self._kept = None
            if not rank:
                log.warning(
                    "the rollouts that the checkpoint holds for the next iteration were sampled "
                    "with other options of model.sampling, env, updates or seed: they are dropped, "
                    "and the iteration is sampled anew"
                )

    def _unpack(self) -> None:
        if self._kept is None:
            return
        data, rank, world_size = self._kept
        self._kept = None
        self._ready = _dealt(_ranks(data), rank, world_size)


def _ranks(data: Tensor) -> list[Collected]:
    rows = json.loads(gzip.decompress(bytes(data.tolist())))
    return [
        Collected([_rollout(r) for r in row["rollouts"]], row["num_sampled"], row["asked"])
        for row in rows
    ]


def _rollout(row: dict[str, Any]) -> Rollout:
    if "question_id" not in row:  # a checkpoint of 0.1.0: question, ids and reward are nested
        question, reward = row["question"], row["reward"]
        asked = {"question_id": question["id"], "question": question["text"]}
        row = row | row["sequence"] | question | asked | reward | {"reward": reward["value"]}
    return Rollout.from_row(row)


def _dealt(ranks: list[Collected], rank: int, world_size: int) -> Collected:
    """This rank's share: question j belongs to rank j modulo the number of ranks."""
    asked, groups, sampled = [], [], sum(one.num_sampled for one in ranks)
    for j in range(sum(len(one.asked) for one in ranks)):
        owner, place = ranks[j % len(ranks)], j // len(ranks)
        size = len(owner.rollouts) // len(owner.asked)
        asked.append(owner.asked[place])
        groups.append(owner.rollouts[place * size : (place + 1) * size])
    mine = slice(rank, None, world_size)
    own = ranks[rank].num_sampled if len(ranks) == world_size else sampled // world_size
    return Collected([r for group in groups[mine] for r in group], own, asked[mine])


def upcoming(loader: Any) -> list[Question]:
    """Return this rank's questions of the next iteration.

    Raises:
        ValueError: the loader does not know them.
    """
    if not hasattr(loader, "upcoming"):
        raise ValueError(
            "async_rollouts must know the next questions, got a loader of type "
            f"{type(loader).__name__}; use QuestionDataModule, or set async_rollouts to 0"
        )
    questions: list[Question] = loader.upcoming()
    return questions


def description(*settings: Any) -> str:
    """Return settings as a text that is the same in another process: no object's address in it."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(settings))


def check_correction(updates: Updates, algorithm: Algorithm) -> None:
    """Refuse asynchronous rollouts without a correction for the weights that sampled them.

    Raises:
        ValueError: the algorithm has a correction, and it is off.
    """
    asked = getattr(algorithm, "correction", ...)
    if updates.async_rollouts and asked is None and not getattr(algorithm, "corrects_itself", 0):
        raise ValueError(
            "algorithm.correction must be set with updates.async_rollouts, for the rollouts come "
            "from weights that are one update old, got none; add `correction: {kind: truncate}` to "
            "the algorithm's init_args"
        )


def stale_rows(rollouts: Sequence[Rollout], version: int, limit: int | None) -> list[int]:
    """Return the rows that hold a turn sampled by weights more than ``limit`` iterations old.

    Args:
        rollouts: of the iteration.
        version: number of iterations that the policy has learned from.
        limit: None is no limit.
    """
    if limit is None:
        return []
    oldest = [min(r.sequence.versions, default=version) for r in rollouts]
    return [row for row, one in enumerate(oldest) if version - one > limit]


__all__ = ["Ahead", "Collected", "check_correction", "description", "stale_rows", "upcoming"]
