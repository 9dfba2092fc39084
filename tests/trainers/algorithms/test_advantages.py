"""Advantages of rollouts, turns and tokens against numbers worked out by hand."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research_rl.trainers.algorithms import advantages
from research_rl.trainers.algorithms.advantages import (
    constant_group_fraction,
    discounted_returns,
    gae,
    group_advantages,
    group_statistics,
    group_turn_rewards,
    last_tokens,
    leave_one_out_advantages,
    overlong_penalty,
    token_rewards,
    turn_returns,
    whiten,
)


def test_a_group_by_hand() -> None:
    # mean 0.25; unbiased variance (0.75^2 + 3 * 0.25^2) / 3 = 0.25; std 0.5
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0])
    found = group_advantages(rewards, torch.zeros(4, dtype=torch.long))
    assert torch.allclose(found, torch.tensor([1.5, -0.5, -0.5, -0.5]), atol=1e-5)


def test_groups_need_neither_order_nor_equal_size() -> None:
    rewards = torch.tensor([1.0, 0.3, 0.0, 0.1, 0.2])
    groups = torch.tensor([7, -2, 7, -2, -2])
    stats = group_statistics(rewards, groups)
    assert torch.allclose(stats.mean, torch.tensor([0.5, 0.2, 0.5, 0.2, 0.2]))
    root = math.sqrt(0.5)
    assert torch.allclose(stats.std, torch.tensor([root, 0.1, root, 0.1, 0.1]))
    assert stats.size.tolist() == [2, 3, 2, 3, 3]
    found = group_advantages(rewards, groups, scale_by_std=False)
    assert torch.allclose(found, torch.tensor([0.5, 0.1, -0.5, -0.1, 0.0]), atol=1e-7)


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0, 1 / 3])
@pytest.mark.parametrize("size", [1, 3, 5, 16])
def test_equal_rewards_are_worth_exactly_nothing(reward: float, size: int) -> None:
    rewards = torch.full((size,), reward)
    found = group_advantages(rewards, torch.zeros(size, dtype=torch.long))
    assert found.tolist() == [0.0] * size


def test_share_of_groups_without_a_difference() -> None:
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5, 0.1])
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    assert float(constant_group_fraction(rewards, groups)) == pytest.approx(2 / 3)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, width=32)), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_advantages_follow_their_rollouts(rows: list[tuple[int, float]], rng: object) -> None:
    groups, rewards = (torch.tensor(x) for x in zip(*rows, strict=True))
    found = group_advantages(rewards, groups)
    order = torch.randperm(len(rows))
    assert torch.allclose(group_advantages(rewards[order], groups[order]), found[order], atol=1e-3)
    for group in groups.unique():
        assert abs(float(found[groups == group].sum())) < 1e-3


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, width=32)), min_size=1, max_size=20))
def test_leave_one_out_is_what_its_name_says(rows: list[tuple[int, float]]) -> None:
    groups, rewards = (torch.tensor(x) for x in zip(*rows, strict=True))
    found = leave_one_out_advantages(rewards, groups)
    for row, (group, reward) in enumerate(rows):
        others = [r for i, (g, r) in enumerate(rows) if g == group and i != row]
        expected = reward - sum(others) / len(others) if others else 0.0
        assert float(found[row]) == pytest.approx(expected, abs=1e-5)


TURNS = torch.tensor([[-1, 0, 0, -1, 1, 2], [0, 0, 0, 0, -1, -1], [-1, -1, -1, -1, -1, -1]])


def test_turns_end_where_the_environment_or_another_turn_begins() -> None:
    assert last_tokens(TURNS).nonzero().tolist() == [[0, 2], [0, 4], [0, 5], [1, 3]]


def test_rewards_are_paid_at_the_ends_of_turns() -> None:
    turn_rewards = torch.tensor([[9.0, 1, 1, 9, 2, 3], [4, 4, 4, 4, 9, 9], [9, 9, 9, 9, 9, 9]])
    rewards = torch.tensor([10.0, 20.0, 30.0])
    plain = [[0, 0, 0, 0, 0, 10], [0, 0, 0, 20, 0, 0], [0] * 6]
    assert token_rewards(rewards, TURNS).tolist() == plain
    both = [[0, 0, 1, 0, 2, 13], [0, 0, 0, 24, 0, 0], [0] * 6]
    assert token_rewards(rewards, TURNS, turn_rewards).tolist() == both


def test_turn_returns_by_hand() -> None:
    turn_rewards = torch.tensor([[9.0, 1, 1, 9, 2, 4], [4, 4, 4, 4, 9, 9], [9, 9, 9, 9, 9, 9]])
    found = turn_returns(turn_rewards, TURNS, 0.5)
    assert found.tolist() == [[0, 3, 3, 0, 4, 4], [4, 4, 4, 4, 0, 0], [0] * 6]
    own = turn_returns(turn_rewards, TURNS, 0.0)
    assert own.tolist() == [[0, 1, 1, 0, 2, 4], [4, 4, 4, 4, 0, 0], [0] * 6]


def test_turn_rewards_are_compared_with_all_turns_of_the_group() -> None:
    turn_rewards = torch.tensor([[0.0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0] * 6])
    found = group_turn_rewards(turn_rewards, TURNS, torch.tensor([5, 5, 5]))
    # the turns 1, 0, 0 and 0, of whatever length, have the mean 1/4 and the std 1/2
    assert torch.allclose(found[0], torch.tensor([0, 1.5, 1.5, 0, -0.5, -0.5]), atol=1e-5)
    assert torch.allclose(found[1], torch.tensor([-0.5, -0.5, -0.5, -0.5, 0, 0]), atol=1e-5)
    centred = group_turn_rewards(turn_rewards, TURNS, torch.tensor([5, 5, 5]), scale_by_std=False)
    assert float(centred[0, 1]) == 0.75
    valued = torch.tensor([[False, True, True, False, False, False], [True] * 6, [True] * 6])
    found = group_turn_rewards(turn_rewards, TURNS, torch.tensor([5, 5, 5]), valued)
    # the turns 1 and 0 have the mean 1/2 and the std 1 / sqrt 2; the others are worth nothing
    half = pytest.approx(math.sqrt(0.5), abs=1e-4)
    assert found[0].tolist() == [0, half, half, 0, 0, 0]
    assert (-found[1]).tolist() == [half, half, half, half, 0, 0]
    nothing = torch.full((1, 3), -1)
    assert group_turn_rewards(torch.ones(1, 3), nothing, torch.zeros(1)).tolist() == [[0, 0, 0]]


def test_gae_steps_over_results_by_hand() -> None:
    mask = torch.tensor([[True, False, False, True]])
    values, rewards = torch.tensor([[0.5, 77.0, -77.0, 0.25]]), torch.tensor([[0.1, 0, 0, 1.0]])
    found, returns = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    last = 1.0 - 0.25
    first = 0.1 + 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * last
    assert torch.allclose(found, torch.tensor([[first, 0, 0, last]]))
    assert torch.allclose(returns, torch.tensor([[first + 0.5, 0, 0, 1.0]]))


VALUES = st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6)


@given(VALUES, VALUES, st.lists(st.booleans(), min_size=6, max_size=6), st.floats(0.5, 1))
def test_gae_of_lambda_1_is_the_return_less_the_value(
    values: list[float], rewards: list[float], mask: list[bool], gamma: float
) -> None:
    own = torch.tensor([mask])
    value, reward = torch.tensor([values]), torch.tensor([rewards]) * own
    found, returns = gae(reward, value, own, gamma, 1.0)
    expected = discounted_returns(reward, own, gamma)
    assert torch.allclose(returns, expected, atol=1e-5)
    assert torch.allclose(found, (expected - value) * own, atol=1e-5)


@given(VALUES, st.lists(st.booleans(), min_size=6, max_size=6))
def test_whitened_values_have_mean_0_and_std_1(values: list[float], mask: list[bool]) -> None:
    own = torch.tensor([mask])
    found = whiten(torch.tensor([values]).masked_fill(~own, math.nan), own)
    kept = torch.tensor([values])[own]
    assert found[~own].eq(0).all()
    if len(kept) < 2 or float(kept.std()) < 1e-3:
        assert bool(found.isfinite().all())
        return
    assert abs(float(found[own].mean())) < 1e-4
    assert float(found[own].std()) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("own", [[3, 3, 0, 2], [4, 0, 0, 1], [2, 2, 0, 0]])
def test_ranks_whiten_together(own: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) + 2
    mask = torch.arange(4) < torch.tensor(own)[:, None]  # the third case leaves a rank no token
    expected = whiten(values, mask)
    barrier, shares = threading.Barrier(2, timeout=30), dict[int, torch.Tensor]()

    def over_ranks(value: torch.Tensor) -> torch.Tensor:
        shares[threading.get_ident()] = value
        barrier.wait()
        total = torch.stack([*shares.values()]).sum(0)
        barrier.wait()
        return total

    monkeypatch.setattr(advantages, "_over_ranks", over_ranks)
    with ThreadPoolExecutor(2) as ranks:
        found = list(ranks.map(whiten, values.split(2), mask.split(2)))
    assert torch.allclose(torch.cat(found), expected, atol=1e-6)


def test_equal_values_are_whitened_to_nothing() -> None:
    assert whiten(torch.full((2, 50), 0.1), torch.ones(2, 50) > 0).eq(0).all()


def test_long_responses_are_punished_softly() -> None:
    found = overlong_penalty(torch.tensor([10, 60, 80, 99, 100, 120]), 100, 40)
    assert torch.allclose(found, torch.tensor([0.0, 0.0, -0.5, -0.975, -1.0, -1.0]))
