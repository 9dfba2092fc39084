"""Recorded decode steps sample what the plain ones do; what they fill up with touches no row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from doubles import tiny
from doubles.sampled import PARAMS, assert_same, make_policy, prompts_of, searcher

from research_rl.agents.engines import graphs, slot_forward
from research_rl.agents.engines.cached import CachedEngine

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


class FakeRecord:
    """Stands for CUDA: a graph runs again on the same tensors, whatever it was called with."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        step()

        def replay() -> None:
            self.replayed += 1
            step()

        return replay


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> FakeRecord:
    """Make every device one that records."""
    fake = FakeRecord()
    monkeypatch.setattr(slot_forward, "recorder", lambda device: fake)
    return fake


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("slots", [3, 9, 64])
def test_samples_are_those_of_plain_steps(record: FakeRecord, slots: int, overlap: bool) -> None:
    """With rows that wait in their slots, a shared prompt in the spare one, and growth."""
    policy = make_policy("qwen2")
    prompts = prompts_of(policy, 5, 1, 4)
    plain = CachedEngine(policy, slots, overlap_searches=overlap)
    theirs = plain.run(prompts, PARAMS, searcher(policy), range(10))
    assert record.recorded == 0
    engine = CachedEngine(policy, slots, overlap_searches=overlap, cuda_graphs=True)
    ours = engine.run(prompts, PARAMS, searcher(policy), range(10))
    assert_same(ours, theirs)
    assert engine.stats == plain.stats
    assert 0 < record.recorded < record.replayed


def test_rows_and_keys_are_rounded_up_and_growth_forgets(record: FakeRecord) -> None:
    policy = make_policy("qwen2")
    made = graphs.DecodeGraphs(None, record, 70)  # type: ignore[arg-type]
    assert [made._rows(n) for n in (1, 8, 9, 32, 33, 65, 70)] == [8, 8, 16, 32, 64, 70, 70]
    engine = CachedEngine(policy, cuda_graphs=True)
    short = prompts_of(policy, 2)
    engine.run(short, PARAMS, searcher(policy), range(2))
    once = record.recorded
    long = [short[0] + [7] * 400]
    engine.run(long, PARAMS, searcher(policy), range(1))
    assert record.recorded > once


def test_models_that_the_decoder_does_not_know_go_the_plain_way(record: FakeRecord) -> None:
    policy = tiny.policy("gemma2")
    engine = CachedEngine(policy, cuda_graphs=True)
    engine.run([[1, 2, 3]], PARAMS, searcher(policy), [0])
    assert record.recorded == 0


def test_a_cpu_records_nothing() -> None:
    assert graphs.recorder(torch.device("cpu")) is None


@needs_cuda
def test_a_gpu_replays_what_it_would_compute() -> None:
    policy: Any = make_policy("qwen2").to("cuda")
    prompts = prompts_of(policy, 5, 1, 4)
    runs = [
        CachedEngine(policy, 9, cuda_graphs=graph).run(prompts, PARAMS, searcher(policy), range(10))
        for graph in (False, True)
    ]
    assert_same(runs[1], runs[0])
