"""A queue of jobs from many callers for one worker; jobs of a kind that wait are done together.

While some are under way the next ones gather. A caller that no longer waits gives its job up.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

_W = TypeVar("_W")


class QueueFullError(RuntimeError):
    """More requests wait than the server accepts; to be asked again later."""


@dataclass(eq=False)
class QueuedJob(Generic[_W]):
    """What somebody wants done.

    Args:
        work: what it is.
        kind: jobs of one kind are done together; one of kind None is done alone, and nothing
            overtakes it.
        done: its result, or why there is none.
    """

    work: _W
    kind: Hashable = None
    done: Future[Any] = field(default_factory=Future)


class JobQueue(ABC, Generic[_W]):
    """Takes jobs in their order and does them in a thread of its own; thread-safe.

    Args:
        max_wait: seconds that a job waits for others to join.
        max_waiting: jobs that may wait; further ones are refused.
        name: of its thread.
    """

    def __init__(self, max_wait: float, max_waiting: int, name: str) -> None:
        if max_waiting < 1:
            raise ValueError(f"max_waiting must be at least 1, got {max_waiting}")
        self._max_wait, self._max_waiting = max_wait, max_waiting
        self._waiting: deque[QueuedJob[_W]] = deque()
        self._running: list[QueuedJob[_W]] = []
        self._given_up: set[Future[Any]] = set()
        self._arrived = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def _results(self, jobs: list[QueuedJob[_W]]) -> Seq[Any]:
        """Do jobs of one kind, at least one, and return the result of each."""

    @abstractmethod
    def _give_up(self, row: int) -> None:
        """Have the job in this place of ``_running`` end as soon as it can."""

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def check_room(self) -> None:
        """Refuse a job that is not made yet, where too many wait.

        Raises:
            QueueFullError: they do.
        """
        if len(self._waiting) >= self._max_waiting:
            raise QueueFullError(f"{len(self._waiting)} requests wait, more may not")

    def start(self) -> None:
        """Begin to answer, in a thread that ``close`` ends; it cannot be begun twice."""
        self._thread.start()

    def drop(self, done: Future[Any]) -> None:
        """Give up a job that nobody waits for; one that is under way ends as soon as it can."""
        if done.cancel():
            with self._arrived:  # those that nobody waits for take no place in the queue
                self._waiting = deque(job for job in self._waiting if job.done is not done)
            return
        with self._arrived:  # so that its row is not another job's by then
            if done.done():
                return
            self._given_up.add(done)
            for row, job in enumerate(self._running):
                if job.done is done:
                    self._give_up(row)

    def close(self, finish: bool = True) -> None:
        """End.

        Args:
            finish: what waits is done first; otherwise it is given up.
        """
        with self._arrived:
            self._closing = True
            given_up = [] if finish else [*self._running, *self._waiting]
            self._arrived.notify_all()
        for job in given_up:
            self.drop(job.done)
        if self._thread.ident is not None:
            self._thread.join()

    def _take(self, job: QueuedJob[_W]) -> None:
        """Let a job wait for its turn.

        Raises:
            QueueFullError: too many wait already.
            ValueError: the queue is closed.
        """
        if self._thread.ident is None:
            raise RuntimeError(
                "the queue must have been started before it is asked; use it in a with block"
            )
        with self._arrived:
            if self._closing:
                raise ValueError("the server must be running, but it is stopping")
            self.check_room()
            self._waiting.append(job)
            self._arrived.notify_all()

    @contextmanager
    def _under_way(self, jobs: list[QueuedJob[_W]]) -> Iterator[None]:
        """Inside, these jobs run and can be given up."""
        with self._arrived:
            self._running = jobs
            for row, job in enumerate(jobs):
                if job.done in self._given_up:  # between its turn and here
                    self._give_up(row)
        try:
            yield
        finally:
            with self._arrived:
                self._running = []

    def _work(self) -> None:
        while jobs := self._next():
            jobs = [job for job in jobs if job.done.set_running_or_notify_cancel()]
            try:
                results = self._results(jobs) if jobs else []
            except Exception as error:
                for job in jobs:
                    job.done.set_exception(error)
            else:
                for job, result in zip(jobs, results, strict=True):
                    job.done.set_result(result)
            with self._arrived:  # from here on none of them can be given up
                self._given_up.difference_update(job.done for job in jobs)

    def _next(self) -> list[QueuedJob[_W]]:
        """The first job and those that can be done with it; none when all is over."""
        while True:
            with self._arrived:
                while not self._waiting and not self._closing:
                    self._arrived.wait()
            time.sleep(self._max_wait)
            with self._arrived:
                if self._waiting:
                    return self._alike()
                if self._closing:
                    return []
            # whoever asked has hung up meanwhile

    def _alike(self) -> list[QueuedJob[_W]]:
        """Take the first job and those of its kind from the row of those that wait."""
        jobs = [self._waiting.popleft()]
        kept: deque[QueuedJob[_W]] = deque()
        while self._waiting and jobs[0].kind is not None:
            job = self._waiting.popleft()
            (jobs if job.kind == jobs[0].kind else kept).append(job)
            if job.kind is None:
                break
        self._waiting.extendleft(reversed(kept))
        return jobs
