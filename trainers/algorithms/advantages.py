"""Formulas of advantages, of rollouts (B,), of their turns or of their tokens (B, T).

Three rollouts of one question with the rewards 1, 0, 0 have the group advantages 1.15, -0.58 and
-0.58: what they earned above the mean of 1/3, in units of the std of 0.58.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupStatistics:
    """Statistics of each rollout's group; all (B,)."""

    mean: Tensor
    std: Tensor  # unbiased, 0 in a group of one
    size: Tensor
    constant: Tensor  # bool, all rewards of the group are equal


def group_statistics(rewards: Tensor, groups: Tensor) -> GroupStatistics:
    """Return every rollout's group statistics.

    Args:
        rewards: (B,).
        groups: (B,) integers; rows with equal ones are a group, wherever they stand.
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
    (https://arxiv.org/abs/2402.03300, section 4.1.2). A group whose rewards are all equal gets
    exactly 0: the mean may be off by rounding, which the division by epsilon would magnify.

    Args:
        rewards: (B,).
        groups: (B,) group ids.
        scale_by_std: False only subtracts the mean (https://arxiv.org/abs/2503.20783).
        epsilon: keeps the result finite.
    """
    stats = group_statistics(rewards, groups)
    advantages = rewards - stats.mean
    if scale_by_std:
        advantages = advantages / (stats.std + epsilon)
    return advantages.masked_fill(stats.constant, 0.0)


def constant_group_fraction(rewards: Tensor, groups: Tensor) -> Tensor:
    """Return the share of groups whose rewards are all equal, a scalar; they teach nothing."""
    stats = group_statistics(rewards, groups)
    return (stats.constant / stats.size).sum() / (1 / stats.size).sum()


def leave_one_out_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """Return each reward minus the mean of the others in its group, (B,); 0 in a group of one.

    The RLOO baseline, https://arxiv.org/abs/2402.14740. It is
    ``size / (size - 1) * (r - mean)``.

    Args:
        rewards: (B,).
        groups: (B,) group ids.
    """
    stats = group_statistics(rewards, groups)
    scale = stats.size / (stats.size - 1).clamp(min=1)
    return (scale * (rewards - stats.mean)).masked_fill(stats.constant, 0.0)


def whiten(values: Tensor, mask: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Return ``(x - mean) / (std + epsilon)`` over all masked tokens of all ranks, 0 elsewhere.

    The normalisation of the whole batch in https://arxiv.org/abs/2501.03262. The std is unbiased.
    Values that are all equal become 0. In a data-parallel run every rank must call it.

    Args:
        values: (B, T).
        mask: (B, T) bool.
        epsilon: keeps the result finite.
    """
    kept = values.masked_fill(~mask, 0.0).double()
    count, total = _over_ranks(torch.stack([mask.sum().double(), kept.sum()]))
    centred = (kept - total / count.clamp(min=1)).masked_fill(~mask, 0.0)
    variance = _over_ranks(centred.square().sum()) / (count - 1).clamp(min=1)
    # differences as small as rounding count as none, for the division would magnify them
    rounding = (1e-6 * kept.abs().amax()).square()
    return torch.where(variance <= rounding, 0.0, centred / (variance.sqrt() + epsilon)).to(values)


def above_batch_mean(rewards: Tensor) -> Tensor:
    """Return each reward minus the mean over all rollouts of all ranks, (B,).

    In a data-parallel run every rank must call it.

    Args:
        rewards: (B,).
    """
    ours = torch.stack([rewards.sum().double(), rewards.new_tensor(len(rewards)).double()])
    total, count = _over_ranks(ours)
    mean: Tensor = total / count
    return rewards - mean.to(rewards)


def _over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over the ranks of a data-parallel run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
    return value


def last_tokens(turns: Tensor) -> Tensor:
    """Return the last token of each turn, (B, T) bool.

    Args:
        turns: (B, T) the turn of each loss token, -1 elsewhere.
    """
    after = torch.cat([turns[:, 1:], turns.new_full((len(turns), 1), -1)], 1)
    return (turns >= 0) & (after != turns)


def token_rewards(rewards: Tensor, turns: Tensor, turn_rewards: Tensor | None = None) -> Tensor:
    """Return the reward of each token, (B, T).

    The reward of a turn is given to its last token, that of a rollout to the last token of all.

    Args:
        rewards: (B,) of the rollouts.
        turns: (B, T) the turn of each loss token, -1 elsewhere.
        turn_rewards: (B, T) the reward of a turn on all its tokens; None if turns have none.
    """
    ends = last_tokens(turns)
    last = ends & (ends.flip(1).cumsum(1).flip(1) == 1)
    paid = last * rewards[:, None]
    return paid if turn_rewards is None else paid + ends * turn_rewards


def discounted_returns(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Return the discounted sum of the rewards from each loss token on, (B, T), 0 elsewhere.

    Only the policy's own tokens count as steps: results between two turns are not discounted.

    Args:
        rewards: (B, T), 0 where the mask is False.
        mask: (B, T) bool.
        gamma: discount of a token.
    """
    running = rewards.new_zeros(len(rewards))
    returns = torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        running = torch.where(mask[:, t], rewards[:, t] + gamma * running, running)
        returns[:, t] = running
    return returns * mask


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Return advantages and the critic's targets, both (B, T), 0 on other columns.

    Generalized advantage estimation, https://arxiv.org/abs/1506.02438, over the policy's own
    tokens only: the last token of a turn is followed by the first token of the next turn. What the
    environment wrote in between has no value and is not discounted.

    Args:
        rewards: (B, T), 0 where the mask is False.
        values: (B, T) the value before each token.
        mask: (B, T) bool.
        gamma: discount of a token.
        gae_lambda: 1 gives the return minus the value, 0 the one-step error.
    """
    advantage, value = (values.new_zeros(len(values)) for _ in range(2))
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        error = rewards[:, t] + gamma * value - values[:, t]
        here = mask[:, t]
        advantage = torch.where(here, error + gamma * gae_lambda * advantage, advantage)
        value = torch.where(here, values[:, t], value)
        advantages[:, t] = advantage
    return advantages * mask, (advantages + values) * mask


def group_turn_rewards(
    turn_rewards: Tensor,
    turns: Tensor,
    groups: Tensor,
    valued: Tensor | None = None,
    *,
    scale_by_std: bool = True,
) -> Tensor:
    """Return turn rewards minus the mean of all turns of the group, divided by their std, (B, T).

    Every turn counts once, however many tokens it has: https://arxiv.org/abs/2510.14967.

    Args:
        turn_rewards: (B, T) the reward of a turn on all its tokens.
        turns: (B, T) the turn of each loss token, -1 elsewhere.
        groups: (B,) group ids.
        valued: (B, T) bool, the tokens of turns that have a reward. The other turns are left out
            of mean and std, and get 0. None means that all have one.
        scale_by_std: False only subtracts the mean.
    """
    compared = last_tokens(turns)
    row, column = (compared if valued is None else compared & valued).nonzero(as_tuple=True)
    if not len(row):
        return torch.zeros_like(turn_rewards)
    ends = torch.zeros_like(turn_rewards)
    ends[row, column] = group_advantages(
        turn_rewards[row, column], groups[row], scale_by_std=scale_by_std
    )
    return _spread(ends, turns)


def turn_returns(turn_rewards: Tensor, turns: Tensor, gamma: float) -> Tensor:
    """Return the discounted sum of each turn's own and later rewards on all its tokens, (B, T).

    Args:
        turn_rewards: (B, T) the reward of a turn on all its tokens.
        turns: (B, T) the turn of each loss token, -1 elsewhere.
        gamma: discount of a turn; 0 is the turn's own reward.
    """
    ends = last_tokens(turns)
    return _spread(discounted_returns(turn_rewards * ends, ends, gamma), turns)


def _spread(ends: Tensor, turns: Tensor) -> Tensor:
    """Copy the value at a turn's last token to all its tokens."""
    spread = torch.zeros_like(ends)
    running = ends.new_zeros(len(ends))
    last = last_tokens(turns)
    for t in reversed(range(ends.shape[1])):
        running = torch.where(last[:, t], ends[:, t], running)
        spread[:, t] = running
    return spread * (turns >= 0)


def overlong_penalty(lengths: Tensor, max_tokens: int, soft_tokens: int) -> Tensor:
    """Return DAPO's soft penalty on long responses, (B,), from 0 down to -1.

    0 up to ``max_tokens - soft_tokens``, then linear, -1 at ``max_tokens`` and beyond: equation 13
    of https://arxiv.org/abs/2503.14476.

    Args:
        lengths: (B,) tokens of the responses, results included.
        max_tokens: the token budget of a rollout.
        soft_tokens: how many tokens before the budget the penalty begins.
    """
    return ((max_tokens - soft_tokens - lengths) / soft_tokens).clamp(-1.0, 0.0)
