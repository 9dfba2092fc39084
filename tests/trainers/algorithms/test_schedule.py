"""WarmupDecay: up, down, and the same in a run that goes on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from research_rl.trainers.algorithms import WarmupDecay


def rates(updates: int, lr: float = 1.0, **options: float) -> list[float]:
    """The rate of each update of a run."""
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=lr)
    schedule = WarmupDecay(optimizer, **options)  # type: ignore[arg-type]
    found = []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_it_rises_and_falls_in_a_line() -> None:
    found = rates(12, lr=2.0, total=10, warmup=2, start_factor=0.5, end_factor=0.3)

    wanted = [1.0, 1.5, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6, 0.6, 0.6]
    assert found == pytest.approx(wanted)


@given(
    total=st.integers(1, 60),
    warmup=st.integers(0, 80),
    start=st.floats(0.01, 1),
    end=st.floats(0, 1),
)
def test_it_stays_between_its_factors_and_the_rate(
    total: int, warmup: int, start: float, end: float
) -> None:
    found = rates(total + 5, total=total, warmup=warmup, start_factor=start, end_factor=end)

    assert all(min(start, end) - 1e-9 <= rate <= 1 + 1e-9 for rate in found)
    if warmup < total - 1:
        assert found[total - 1] == pytest.approx(end), "the last update of the run"
        assert found[warmup] == pytest.approx(1)


def test_a_run_that_goes_on_with_more_updates_has_the_rates_of_the_longer_one() -> None:
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=1.0)
    short = WarmupDecay(optimizer, total=10, warmup=2)
    for _ in range(4):
        optimizer.step()
        short.step()
    longer = WarmupDecay(optimizer, total=20, warmup=2, last_epoch=short.last_epoch)

    optimizer.step()
    longer.step()

    assert optimizer.param_groups[0]["lr"] == pytest.approx(rates(7, total=20, warmup=2)[6])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"total": -1}, "max_steps"),
        ({"total": 5, "warmup": -1}, "warmup"),
        ({"total": 5, "start_factor": 0.0}, "start_factor"),
        ({"total": 5, "end_factor": 1.5}, "end_factor"),
    ],
)
def test_wrong_numbers_are_named(options: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        rates(1, **options)
