"""Calls of ``on_stop`` when sequences end a turn: at once, or in a thread while the others decode.

A search may take as long as many decode steps. In a thread it costs nothing while other sequences
still have tokens to sample.
"""

from __future__ import annotations

import contextvars
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from research_rl.agents.types import OnStop, Sequence

Replies = list[tuple[int, list[int] | None]]
"""(row, the ids to append or None where it is over) of rows that ended a turn."""


class Stops(ABC):
    """Asks on_stop about rows that ended a turn.

    Args:
        on_stop: what is asked; never twice at the same time.
        sequences: by row.
    """

    def __init__(self, on_stop: OnStop, sequences: Seq[Sequence]) -> None:
        self._on_stop, self._sequences = on_stop, sequences
        self.calls = 0
        """How often on_stop was called."""

    @abstractmethod
    def ask(self, rows: list[int], step: int) -> Replies:
        """Ask about rows that ended a turn in this decode step; what is known at once."""

    @abstractmethod
    def replies(self, step: int, idle: bool) -> Replies:
        """What has become known since about rows that wait.

        Args:
            step: decode steps so far.
            idle: no row decodes, so there is nothing to do but to wait for a reply.
        """

    def close(self) -> None:
        """Forget what was not asked yet; wait for what was."""
        return

    def _call(self, rows: list[int]) -> Replies:
        pairs = [(row, self._sequences[row]) for row in rows]
        with torch.inference_mode(False), torch.no_grad():  # settings of the thread
            return list(zip(rows, self._on_stop(pairs), strict=True))


class DirectStops(Stops):
    """Asks in the decode thread, which waits; no row is ever parked."""

    def ask(self, rows: list[int], step: int) -> Replies:
        """See Stops."""
        self.calls += 1
        return self._call(sorted(rows))

    def replies(self, step: int, idle: bool) -> Replies:
        """See Stops."""
        return []


@dataclass(frozen=True)
class Coalescing:
    """When the rows that wait are asked about together, and when their replies are taken up.

    Args:
        count: rows that are worth a call.
        age: decode steps after which fewer are.
        delay: decode steps from a call to its replies, where that is fixed.

    Raises:
        ValueError: one of them is too small.
    """

    count: int = 16
    age: int = 8
    delay: int = 8

    def __post_init__(self) -> None:
        if self.count < 1 or self.age < 0 or self.delay < 0:
            raise ValueError(
                "count must be at least 1, age and delay at least 0, got "
                f"{self.count}, {self.age} and {self.delay}"
            )


class OverlappedStops(Stops):
    """Asks in a thread of its own while other rows decode.

    When replies are taken up is counted in decode steps, so it does not depend on the clock: a call
    that is late is waited for.

    Args:
        on_stop: what is asked.
        sequences: by row; those of rows that wait are read in the other thread.
        when: rows are asked about.
        deterministic: False takes replies up as they arrive.
    """

    def __init__(
        self, on_stop: OnStop, sequences: Seq[Sequence], when: Coalescing, deterministic: bool
    ) -> None:
        super().__init__(on_stop, sequences)
        self._when, self._deterministic = when, deterministic
        self._rows: list[int] = []
        self._since = 0  # the step in which the first of them came
        self._asked: deque[tuple[int, Future[Replies]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="on_stop")
        self._context = contextvars.copy_context()

    def ask(self, rows: list[int], step: int) -> Replies:
        """See Stops."""
        if not self._rows:
            self._since = step
        self._rows += rows
        return []

    def replies(self, step: int, idle: bool) -> Replies:
        """See Stops; what on_stop raises is raised here."""
        ripe = len(self._rows) >= self._when.count or step - self._since >= self._when.age
        if self._rows and (ripe or idle):
            self.calls += 1
            rows, self._rows = sorted(self._rows), []
            future = self._thread.submit(self._context.run, self._call, rows)
            self._asked.append((step, future))
        known: Replies = []
        while self._asked and ((idle and not known) or self._is_due(step)):
            known += self._asked.popleft()[1].result()
        return known

    def _is_due(self, step: int) -> bool:
        asked, future = self._asked[0]
        return step - asked >= self._when.delay if self._deterministic else future.done()

    def close(self) -> None:
        """See Stops."""
        self._thread.shutdown(wait=True, cancel_futures=True)
