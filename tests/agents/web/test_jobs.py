"""A queue keeps nothing of a job that is over, whenever its caller gave it up."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from research_rl.agents.web import JobQueue, QueuedJob


class Squares(JobQueue[int]):
    """Squares numbers; a caller hangs up at the worst moment.

    Args:
        fails: whether the work fails.
    """

    def __init__(self, fails: bool) -> None:
        super().__init__(0.0, 8, "squares")
        self._fails = fails
        self.told = threading.Event()

    def ask(self, number: int) -> QueuedJob[int]:
        """Have a number squared."""
        job = QueuedJob(number, "number")
        job.done.add_done_callback(lambda _: self.told.set())
        self._take(job)
        return job

    def _give_up(self, row: int) -> None:
        raise AssertionError("none is under way any more")

    def _results(self, jobs: list[QueuedJob[int]]) -> Sequence[int]:
        with self._under_way(jobs):
            found = [job.work**2 for job in jobs]
        for job in jobs:  # over, and its result is not told yet
            self.drop(job.done)
        if self._fails:
            raise ValueError("no squares today")
        return found


@pytest.mark.parametrize("fails", [False, True])
def test_who_hangs_up_between_the_end_and_its_telling_leaves_nothing(fails: bool) -> None:
    with Squares(fails) as queue:
        queue.ask(3)
        assert queue.told.wait(10)
    assert not queue._given_up


class Slow(JobQueue[int]):
    """Waits a while for more work before it begins."""

    def __init__(self) -> None:
        super().__init__(0.05, 8, "slow")

    def ask(self, number: int) -> QueuedJob[int]:
        """Have a number squared."""
        job = QueuedJob(number, "number")
        self._take(job)
        return job

    def _give_up(self, row: int) -> None:
        raise AssertionError("none is under way")

    def _results(self, jobs: list[QueuedJob[int]]) -> Sequence[int]:
        return [job.work**2 for job in jobs]


def test_who_hangs_up_before_the_turn_comes_leaves_a_queue_that_works() -> None:
    with Slow() as queue:
        queue.drop(queue.ask(3).done)
        time.sleep(0.1)
        assert queue.ask(4).done.result(10) == 16
