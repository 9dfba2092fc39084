"""REINFORCE with a baseline: RLOO, REINFORCE++ and its variant with a group baseline.

RLOO subtracts the mean reward of the group's other rollouts, REINFORCE++ the mean of the batch,
and the variant the mean of the group.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from research_rl.trainers.algorithms.advantages import (
    discounted_returns,
    group_advantages,
    leave_one_out_advantages,
    token_rewards,
    whiten,
)
from research_rl.trainers.algorithms.base import check_positive
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.algorithms.losses import Aggregation, KLEstimator
from research_rl.trainers.algorithms.policy_gradient import KLPlace, PolicyGradient, check_groups


class RLOO(PolicyGradient):
    """REINFORCE leave-one-out (https://arxiv.org/abs/2402.14740).

    ``A = r - mean of the others in the group``, times the log-prob of the whole rollout. The KL is
    part of the reward. If a batch is used for several updates, token ratios are clipped as in PPO.

    Args:
        kl_coef: weight of the KL to the reference; 0 needs no reference.
        kl_estimator: k1, k2, k3 or abs.
        kl_in: subtract the KL from the reward, as in the paper, or add it to the loss.
        aggregation: sequence-sum gives the log-prob of the rollout; the others are as in GRPO.
        options: those of PolicyGradient.
    """

    needs_groups = True

    def __init__(
        self,
        kl_coef: float = 1e-3,
        kl_estimator: KLEstimator = "k1",
        kl_in: KLPlace = "reward",
        aggregation: Aggregation = "sequence-sum",
        **options: Any,
    ) -> None:
        super().__init__(
            kl_coef=kl_coef,
            kl_estimator=kl_estimator,
            kl_in=kl_in,
            aggregation=aggregation,
            **options,
        )

    def advantages(self, batch: Batch) -> Tensor:
        """Return the leave-one-out advantages, (B,).

        Raises:
            ValueError: every rollout is alone in its group, so there is nothing to compare.
        """
        check_groups(batch)
        return leave_one_out_advantages(self.rewards(batch), batch.groups)


class ReinforcePlusPlus(PolicyGradient):
    """REINFORCE++ (https://arxiv.org/abs/2501.03262), which needs neither critic nor groups.

    ``A_t = r - kl_coef * sum of the KL from t on``, normalised over all tokens of the batch. A
    group size of 1 is enough. Turn rewards, if there are any, are given at the end of their turn.

    Args:
        kl_coef: weight of the KL to the reference; 0 needs no reference.
        kl_estimator: k1, k2, k3 or abs.
        kl_in: subtract the KL from each token's reward, as in the paper, or add it to the loss.
        gamma: discount of a token; 1 as in the paper.
        options: those of PolicyGradient.
    """

    def __init__(
        self,
        kl_coef: float = 1e-3,
        kl_estimator: KLEstimator = "k1",
        kl_in: KLPlace = "reward",
        gamma: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(kl_coef=kl_coef, kl_estimator=kl_estimator, kl_in=kl_in, **options)
        self.gamma = check_positive("gamma", gamma)

    def advantages(self, batch: Batch) -> Tensor:
        """Return the normalised returns of each token, (B, T)."""
        paid = token_rewards(batch.rewards, batch.turns, batch.turn_rewards)
        returns = discounted_returns(paid - self.kl_penalty(batch), batch.loss_mask, self.gamma)
        return whiten(returns, batch.loss_mask)


class ReinforcePlusPlusBaseline(PolicyGradient):
    """REINFORCE++ with a group baseline (https://arxiv.org/abs/2501.03262).

    ``A = r - mean of the group``, normalised over all tokens of the batch and not by the std of the
    group. The KL is estimated by k2 and is part of the loss.

    Args:
        kl_coef: weight of the KL to the reference; 0 needs no reference.
        kl_estimator: k1, k2, k3 or abs.
        options: those of PolicyGradient.
    """

    needs_groups = True

    def __init__(
        self, kl_coef: float = 1e-3, kl_estimator: KLEstimator = "k2", **options: Any
    ) -> None:
        super().__init__(kl_coef=kl_coef, kl_estimator=kl_estimator, **options)

    def advantages(self, batch: Batch) -> Tensor:
        """Return the normalised differences from the group's mean, (B, T).

        Raises:
            ValueError: every rollout is alone in its group, so there is nothing to compare.
        """
        check_groups(batch)
        above = group_advantages(self.rewards(batch), batch.groups, scale_by_std=False)
        return whiten(above[:, None] * batch.loss_mask, batch.loss_mask)
