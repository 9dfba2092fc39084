"""A learning rule of one's own, outside the package: what counts is a rollout's rank.

From the folder of this file:

    research fit --config quickstart --model.algorithm my_algorithm.RankGRPO

The advantage is the share of the group that did worse less the share that did better. It lies in
[-1, 1], whatever the scale of the reward and however far the best rollout is ahead.
"""

from __future__ import annotations

from torch import Tensor

from research_rl.trainers.algorithms import Batch, PolicyGradient


class RankGRPO(PolicyGradient):
    """GRPO with ranks in place of rewards; the options are those of PolicyGradient."""

    def advantages(self, batch: Batch) -> Tensor:
        """Return each rollout's standing in its group, (B,)."""
        same_group = batch.groups[:, None] == batch.groups  # (B, B)
        rewards = self.rewards(batch)
        ahead = (rewards[:, None] - rewards).sign() * same_group
        return ahead.sum(1) / same_group.sum(1)
