"""Searches off the decode thread change when things are computed, never what is sampled."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from doubles import tiny
from doubles.sampled import BIAS, PARAMS, assert_same, make_policy, prompts_of, searcher

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.engines.stops import Coalescing, OverlappedStops
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import Sequence

Stopped = list[tuple[int, Sequence]]


class Watched:
    """on_stop that notes who came, in which thread, and that no two calls overlap."""

    def __init__(self, policy: LMPolicy, seconds: float = 0.0) -> None:
        self._reply, self._seconds = searcher(policy), seconds
        self.calls: list[list[int]] = []
        self.threads: set[str] = set()
        self._busy = threading.Lock()

    def __call__(self, stopped: Stopped) -> list[list[int] | None]:
        assert self._busy.acquire(blocking=False), "two calls at once"
        try:
            time.sleep(self._seconds)
            self.calls.append([row for row, _ in stopped])
            self.threads.add(threading.current_thread().name)
            return self._reply(stopped)
        finally:
            self._busy.release()


@pytest.fixture(scope="module")
def policy() -> LMPolicy:
    return make_policy("qwen2")


@pytest.mark.parametrize("slots", [3, 64])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("when", [Coalescing(), Coalescing(1, 0, 0), Coalescing(4, 2, 3)])
def test_samples_are_those_of_the_engine_that_waits(
    policy: LMPolicy, slots: int, deterministic: bool, when: Coalescing
) -> None:
    prompts = prompts_of(policy, 5, 1, 4)
    engine = CachedEngine(policy, slots)
    theirs = engine.run(prompts, PARAMS, searcher(policy), range(10))
    read = engine.stats.prefilled_tokens
    assert engine.stats.result_tokens > 0
    parking = CachedEngine(
        policy, slots, overlap_searches=True, deterministic=deterministic, coalescing=when
    )
    watched = Watched(policy, seconds=0.001)
    assert_same(parking.run(prompts, PARAMS, watched, range(10)), theirs)
    assert parking.stats.prefilled_tokens == read
    assert parking.stats.stop_calls == len(watched.calls)
    assert {name.split("_0")[0] for name in watched.threads} == {"on_stop"}


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_the_clock_does_not_change_what_is_computed_together(
    policy: LMPolicy, seconds: float
) -> None:
    prompts = prompts_of(policy, 6, 6)
    engine = CachedEngine(policy, 8, overlap_searches=True, coalescing=Coalescing(4, 3, 5))
    runs = []
    for wait in (0.0, seconds):
        watched = Watched(policy, wait)
        sequences = engine.run(prompts, PARAMS, watched, range(12))
        runs.append((watched.calls, engine.stats, sequences))  # equal log-probs to the last bit
    assert runs[0] == runs[1]
    assert len(runs[0][0]) > 2


def test_rows_are_asked_about_by_count_by_age_and_when_nothing_decodes() -> None:
    sequences = [Sequence([1]) for _ in range(9)]
    calls: list[list[int]] = []

    def on_stop(stopped: Stopped) -> list[list[int] | None]:
        calls.append([row for row, _ in stopped])
        return [[row] for row, _ in stopped]

    stops = OverlappedStops(on_stop, sequences, Coalescing(3, 4, 2), deterministic=True)
    try:
        stops.ask([1], 0)
        assert stops.replies(1, idle=False) == []  # too few, too young
        stops.ask([5, 0], 1)
        assert stops.replies(1, idle=False) == []  # asked by count, not due
        stops.ask([2], 2)
        assert stops.replies(2, idle=False) == []
        assert stops.replies(3, idle=False) == [(0, [0]), (1, [1]), (5, [5])]
        assert stops.replies(6, idle=False) == []  # asked by age
        assert stops.replies(8, idle=False) == [(2, [2])]
        stops.ask([3], 8)
        assert stops.replies(8, idle=True) == [(3, [3])]  # nothing else to do
    finally:
        stops.close()
    assert calls == [[0, 1, 5], [2], [3]]
    assert stops.calls == 3


def test_others_decode_while_a_search_is_under_way(policy: LMPolicy) -> None:
    prompts = prompts_of(policy, 6, 6)
    begun, going_on = threading.Event(), threading.Event()

    class Engine(CachedEngine):
        def shape_logits(self, logits: Any, rows: Any, positions: Any, params: Any) -> Any:
            if begun.is_set():
                going_on.set()
            return super().shape_logits(logits, rows, positions, params)

    reply = searcher(policy)

    def on_stop(stopped: Stopped) -> list[list[int] | None]:
        begun.set()
        assert going_on.wait(10), "no step was decoded during the search"
        return reply(stopped)  # type: ignore[no-any-return]

    engine = Engine(policy, overlap_searches=True, coalescing=Coalescing(1, 0, 4))
    assert all(s.finish != "running" for s in engine.run(prompts, PARAMS, on_stop, range(12)))


class Outage(Exception):
    """What a retriever raises."""


@pytest.mark.parametrize("overlap", [False, True])
def test_what_on_stop_raises_arrives_unchanged(policy: LMPolicy, overlap: bool) -> None:
    outage = Outage("the retriever is down")

    def on_stop(stopped: Stopped) -> list[list[int] | None]:
        raise outage

    threads = threading.active_count()
    engine = CachedEngine(policy, overlap_searches=overlap)
    with pytest.raises(Outage) as caught:
        engine.run(prompts_of(policy, 4), PARAMS, on_stop, range(4))
    assert caught.value is outage
    assert threading.active_count() == threads
    again = engine.run(prompts_of(policy, 4), PARAMS, searcher(policy), range(4))
    assert_same(
        again, CachedEngine(policy).run(prompts_of(policy, 4), PARAMS, searcher(policy), range(4))
    )


def test_no_search_outlives_a_run_that_fails() -> None:
    policy = tiny.policy(bias=BIAS)
    begun, over = threading.Event(), threading.Event()

    class Failing(CachedEngine):
        def shape_logits(self, logits: Any, rows: Any, positions: Any, params: Any) -> Any:
            if len(rows) < 16:  # some have ended a turn
                assert begun.wait(10)
                raise Outage
            return logits

    def on_stop(stopped: Stopped) -> list[list[int] | None]:
        begun.set()
        time.sleep(0.05)
        over.set()
        return [None for _ in stopped]

    engine = Failing(policy, overlap_searches=True, coalescing=Coalescing(1, 0, 50))
    with pytest.raises(Outage):
        engine.run(prompts_of(policy, 8, 8), PARAMS, on_stop, range(16))
    assert over.is_set()


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="count must be at least 1"):
        Coalescing(count=0)
    with pytest.raises(ValueError, match="got 16, 8 and -1"):
        Coalescing(delay=-1)
