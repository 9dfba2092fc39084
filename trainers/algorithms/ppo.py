"""Proximal Policy Optimization with a critic on the policy's own hidden states.

The critic is one linear layer, so PPO costs hardly more memory than GRPO.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from research_rl.trainers.algorithms.advantages import gae, token_rewards, whiten
from research_rl.trainers.algorithms.base import (
    check_not_negative,
    check_positive,
    weighted_metric,
    weighted_sum,
)
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.algorithms.losses import KLEstimator, value_loss
from research_rl.trainers.algorithms.policy_gradient import KLPlace, PolicyGradient

if TYPE_CHECKING:
    from research_rl.agents.policy import LMPolicy, PolicyOutput


class PPO(PolicyGradient):
    """PPO (https://arxiv.org/abs/1707.06347) with GAE (https://arxiv.org/abs/1506.02438).

    The critic is a linear head on the last hidden states. It values the state before each of the
    policy's tokens; GAE skips what the environment wrote. The rollout's reward is given at its
    last token, turn rewards at the end of their turn, the KL at each token. Advantages are
    normalised over all tokens of the batch. A group size of 1 is enough.

    Args:
        gamma: discount of a token.
        gae_lambda: 1 relies on the rewards alone; the smaller, the more on the critic.
        value_coef: weight of the critic's loss.
        value_clip: how far an update may move a value; None is no limit.
        value_scale: factor of the head's output. With Adam, the critic then learns so many times
            faster than the policy at the same learning rate.
        train_trunk: let the critic's loss change the policy's hidden states too.
        critic_warmup: optimizer steps at the beginning in which only the critic learns.
        kl_coef: weight of the KL to the reference; 0 needs no reference.
        kl_in: subtract the KL from each token's reward, or add it to the loss.
        options: those of PolicyGradient.
    """

    needs_values = True
    separable = True
    num_updates: Tensor

    def __init__(
        self,
        gamma: float = 1.0,
        gae_lambda: float = 1.0,
        value_coef: float = 0.5,
        value_clip: float | None = 0.2,
        value_scale: float = 1.0,
        train_trunk: bool = False,
        critic_warmup: int = 0,
        kl_coef: float = 1e-3,
        kl_estimator: KLEstimator = "k1",
        kl_in: KLPlace = "reward",
        **options: Any,
    ) -> None:
        super().__init__(kl_coef=kl_coef, kl_estimator=kl_estimator, kl_in=kl_in, **options)
        self.gamma = check_positive("gamma", gamma)
        self.gae_lambda = check_not_negative("gae_lambda", gae_lambda)
        self.value_coef = check_positive("value_coef", value_coef)
        self.value_clip = None if value_clip is None else check_positive("value_clip", value_clip)
        self.value_scale = check_positive("value_scale", value_scale)
        self.train_trunk = train_trunk
        self.critic_warmup = int(check_not_negative("critic_warmup", critic_warmup))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    def bind(self, policy: LMPolicy) -> None:
        """Make the value head; every value is 0 at first."""
        self.head = nn.Linear(policy.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def values(self, out: PolicyOutput) -> Tensor:
        """Return the value of the state before each token, (B, T) float32."""
        assert out.hidden is not None
        hidden = out.hidden if self.train_trunk else out.hidden.detach()
        values: Tensor = self.head(hidden.to(self.head.weight.dtype))[..., 0].float()
        return values * self.value_scale

    def advantages(self, batch: Batch) -> Tensor:
        """Return the normalised advantages of each token, (B, T); set ``batch.returns``."""
        assert batch.values is not None
        paid = token_rewards(batch.rewards, batch.turns, batch.turn_rewards)
        found, batch.returns = gae(
            paid - self.kl_penalty(batch),
            batch.values,
            batch.loss_mask,
            self.gamma,
            self.gae_lambda,
        )
        return whiten(found, batch.loss_mask)

    def active(self, batch: Batch) -> Tensor:
        """Return which rows (B,) have loss tokens; the critic learns from all of them."""
        return batch.loss_mask.any(1)

    def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy's loss plus value_coef times the critic's, weighted and summed.

        Metrics besides those of PolicyGradient: value_loss, and value (the mean prediction).
        """
        assert batch.values is not None
        assert batch.returns is not None
        values = self.values(out)
        error = value_loss(values, batch.values, batch.returns, self.value_clip)
        policy_loss, metrics = super().loss(out, batch)
        metrics["value_loss"] = weighted_metric(error, batch)
        metrics["value"] = weighted_metric(values, batch)
        learns = self.num_updates >= self.critic_warmup
        return policy_loss * learns + self.value_coef * weighted_sum(error, batch), metrics

    def after_update(self, metrics: Mapping[str, Tensor]) -> None:
        """Count the updates, and adapt the weight of the KL if there is a kl_control."""
        super().after_update(metrics)
        self.num_updates += 1
