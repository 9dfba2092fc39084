"""From rewards (B,) and group ids (B,) to one advantage for each rollout (B,)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupStatistics:
    """What each rollout's group looks like; all (B,)."""

    mean: Tensor
    std: Tensor  # unbiased, 0 in a group of one
    size: Tensor
    constant: Tensor  # bool, every reward of the group is the same


def group_statistics(rewards: Tensor, groups: Tensor) -> GroupStatistics:
    """Return every rollout's group statistics.

    Args:
        rewards: (B,).
        groups: (B,) any integers; equal means same group, wherever the rows stand.
    """
    names, group = torch.unique(groups, return_inverse=True)
    zeros = rewards.new_zeros(len(names))
    size = zeros.index_add(0, group, torch.ones_like(rewards))
    mean = zeros.index_add(0, group, rewards) / size
    squares = zeros.index_add(0, group, (rewards - mean[group]).square())
    low = zeros.scatter_reduce(0, group, rewards, "amin", include_self=False)
    high = zeros.scatter_reduce(0, group, rewards, "amax", include_self=False)
    std = (squares / (size - 1).clamp(min=1)).sqrt()
    return GroupStatistics(mean[group], std[group], size[group], (low == high)[group])


def group_advantages(
    rewards: Tensor, groups: Tensor, *, scale_by_std: bool = True, epsilon: float = 1e-6
) -> Tensor:
    """Return ``(r - mean) / (std + epsilon)`` within each group, (B,).

    The std is unbiased (divided by size - 1), as in the code of ReSearch
    (https://github.com/Agent-RL/ReCall); the rule is that of GRPO
    (https://arxiv.org/abs/2402.03300, section 4.1.2). A group whose rewards are all the same gets
    exactly 0, so that rounding of the mean is not blown up by the division.

    Args:
        rewards: (B,).
        groups: (B,) group ids.
        scale_by_std: False only subtracts the mean (https://arxiv.org/abs/2503.20783).
        epsilon: keeps the division finite.
    """
    stats = group_statistics(rewards, groups)
    advantages = rewards - stats.mean
    if scale_by_std:
        advantages = advantages / (stats.std + epsilon)
    return advantages.masked_fill(stats.constant, 0.0)


def constant_group_fraction(rewards: Tensor, groups: Tensor) -> Tensor:
    """Return the share of groups whose rewards are all the same, a scalar: they teach nothing."""
    stats = group_statistics(rewards, groups)
    return (stats.constant / stats.size).sum() / (1 / stats.size).sum()
