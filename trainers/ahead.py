"""One-step-off sampling: the next iteration's rollouts are made while this one is learned from.

The rollouts of iteration i + 1 are sampled with the weights that iteration i began with. Which
weights sample what is fixed, so the clock decides nothing, and what has been sampled already goes
into the checkpoint, so a resumed run goes on exactly.
"""

from __future__ import annotations

import copy
import gzip
import json
import logging
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
        num_sampled: those that were replaced included.
        asked: ids of the questions of the iteration, in order.
    """

    rollouts: list[Rollout]
    num_sampled: int
    asked: list[str]

    def stamp(self, version: int) -> Collected:
        """Note which weights sampled the turns, where the engine did not; return itself.

        Args:
            version: iterations that the weights had learned from.
        """
        for rollout in self.rollouts:
            if not rollout.sequence.versions:
                rollout.sequence.versions = [version] * len(rollout.turns)
        return self

    def to_row(self) -> dict[str, Any]:
        """Return it ready for JSON, each rollout as its row."""
        return {**vars(self), "rollouts": [rollout.to_row() for rollout in self.rollouts]}


class Ahead:
    """Makes the next iteration's rollouts in a thread, and keeps them until they are due.

    An engine in this process samples from a copy of the policy, which costs the memory of its
    weights once more; rollout servers hold their own.

    Args:
        make_engine: makes the engine of the copy.
    """

    def __init__(self, make_engine: Callable[[LMPolicy], Engine]) -> None:
        self._make_engine = make_engine
        self._sampler: tuple[LMPolicy, Engine] | None = None
        self._ready: Collected | None = None
        self._kept: Any = None

    @torch.no_grad()
    def sampler(self, policy: LMPolicy, engine: Engine) -> tuple[LMPolicy, Engine]:
        """Return policy and engine that go on sampling with the weights of now.

        Args:
            policy: that is about to learn.
            engine: of the policy; already synced.
        """
        if engine.holds_weights:
            # the tokenizer is not for two threads
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

    @contextmanager
    def running(self, collect: Callable[[], Collected]) -> Iterator[None]:
        """Collect in a thread while the block runs; wait for it at the end of the block.

        What ``collect`` raises is raised there.
        """
        with ThreadPoolExecutor(1, "ahead") as thread:
            future = thread.submit(collect)
            yield
            self._ready = future.result()

    def take(self, questions: Sequence[Question]) -> Collected | None:
        """Return what was made for this batch; None where nothing was, or for another batch."""
        self._unpack()
        ready, self._ready = self._ready, None
        if ready is not None and ready.asked != [q.id for q in questions]:
            log.warning(
                "the rollouts that were sampled ahead are for other questions (has the batch size "
                "changed?); this iteration is sampled anew"
            )
            return None
        return ready

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps: the rollouts that wait, of all ranks; every rank must ask."""
        own = None if self._ready is None else self._ready.to_row()
        ranks = gather([own])
        if any(one is None for one in ranks):
            return None
        data = gzip.compress(json.dumps(ranks).encode(), mtime=0)
        return {"rollouts": torch.frombuffer(bytearray(data), dtype=torch.uint8)}

    def load(self, state: dict[str, Any] | None, rank: int, world_size: int) -> None:
        """Take back what a checkpoint kept; the ranks may be more or fewer now."""
        self._kept = None if state is None else (state["rollouts"], rank, world_size)

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
    """This rank's share: question j of the batch belongs to rank j modulo the number of ranks."""
    asked, groups, sampled = [], [], sum(one.num_sampled for one in ranks)
    for j in range(sum(len(one.asked) for one in ranks)):
        owner, place = ranks[j % len(ranks)], j // len(ranks)
        size = len(owner.rollouts) // len(owner.asked)
        asked.append(owner.asked[place])
        groups.append(owner.rollouts[place * size : (place + 1) * size])
    mine = slice(rank, None, world_size)
    own = ranks[rank].num_sampled if len(ranks) == world_size else sampled // world_size
    return Collected([r for group in groups[mine] for r in group], own, asked[mine])


def check_correction(updates: Updates, algorithm: Algorithm) -> None:
    """Refuse stale rollouts without an importance correction.

    Raises:
        ValueError: the algorithm has one, and it is off.
    """
    if updates.async_rollouts and getattr(algorithm, "correction", ...) is None:
        raise ValueError(
            "algorithm.correction must be set with updates.async_rollouts, for the rollouts come "
            "from weights that are one update old, got none; add `correction: {kind: truncate}` to "
            "the algorithm's init_args"
        )


def stale_rows(rollouts: Sequence[Rollout], version: int, limit: int | None) -> list[int]:
    """Rows with a turn that was sampled more than ``limit`` iterations ago.

    Args:
        rollouts: of the iteration.
        version: iterations that the policy has learned from.
        limit: None is none.
    """
    if limit is None:
        return []
    oldest = [min(r.sequence.versions, default=version) for r in rollouts]
    return [row for row, one in enumerate(oldest) if version - one > limit]


__all__ = ["Ahead", "Collected", "check_correction", "stale_rows"]
