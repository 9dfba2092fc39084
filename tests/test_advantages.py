"""Group advantages against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research_rl.trainers.advantages import (
    constant_group_fraction,
    group_advantages,
    group_statistics,
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
