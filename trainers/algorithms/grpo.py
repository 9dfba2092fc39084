"""Group Relative Policy Optimization, as ReSearch uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from torch import Tensor

from research_rl.trainers.advantages import group_advantages, group_statistics
from research_rl.trainers.algorithms.base import (
    Algorithm,
    check_known,
    check_not_negative,
    check_positive,
    weighted_metric,
    weighted_sum,
)
from research_rl.trainers.losses import (
    Aggregation,
    KLEstimator,
    clipped_surrogate,
    kl_estimate,
    token_weights,
)
from research_rl.trainers.types import Batch

if TYPE_CHECKING:
    from research_rl.agents.policy import PolicyOutput


class GRPO(Algorithm):
    """Group Relative Policy Optimization (https://arxiv.org/abs/2402.03300) as ReSearch uses it.

    Args:
        clip_low: how far below 1 the importance ratio may fall before it is clipped.
        clip_high: how far above 1; None is the same as clip_low.
        kl_coef: weight of the KL to the reference in the loss; 0 needs no reference.
        kl_estimator: k1, k2 or k3.
        entropy_coef: weight of the entropy bonus.
        scale_by_std: divide advantages by the standard deviation of their group's rewards.
        aggregation: how token losses become one number: token-mean, sequence-mean, fixed-length.
        fixed_length: tokens a rollout counts as under fixed-length; usually the token budget.
    """

    needs_old_logprobs = True

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float | None = None,
        kl_coef: float = 1e-3,
        kl_estimator: KLEstimator = "k3",
        entropy_coef: float = 0.0,
        scale_by_std: bool = True,
        aggregation: Aggregation = "token-mean",
        fixed_length: int | None = None,
    ) -> None:
        super().__init__()
        self.clip_low = check_positive("clip_low", clip_low)
        self.clip_high = clip_low if clip_high is None else check_positive("clip_high", clip_high)
        self.kl_coef = check_not_negative("kl_coef", kl_coef)
        self.entropy_coef = check_not_negative("entropy_coef", entropy_coef)
        self.kl_estimator: KLEstimator = kl_estimator
        self.aggregation: Aggregation = aggregation
        check_known("kl_estimator", kl_estimator, get_args(KLEstimator))
        check_known("aggregation", aggregation, get_args(Aggregation))
        if aggregation == "fixed-length" and (fixed_length is None or fixed_length < 1):
            raise ValueError(
                f"fixed_length must be positive with aggregation fixed-length, got {fixed_length}; "
                "set it to the token budget of a rollout"
            )
        self.scale_by_std = scale_by_std
        self.fixed_length = fixed_length
        self.needs_reference = kl_coef > 0
        self.entropy_gradient = entropy_coef > 0

    def advantages(self, batch: Batch) -> Tensor:
        """Return the group advantages, (B,).

        Raises:
            ValueError: every rollout is alone in its group, so that nothing could be learned.
        """
        if bool((group_statistics(batch.rewards, batch.groups).size == 1).all()):
            raise ValueError(
                "group_size must be at least 2, got 1; a group compares rollouts of one question"
            )
        return group_advantages(batch.rewards, batch.groups, scale_by_std=self.scale_by_std)

    def weights(self, batch: Batch) -> Tensor:
        """Return each token's share (B, T) under the chosen aggregation."""
        return token_weights(
            batch.loss_mask, self.aggregation, batch.num_tokens, batch.num_rows, self.fixed_length
        )

    def active(self, batch: Batch) -> Tensor:
        """Return the rows (B,) with an advantage, or all where KL or entropy count too."""
        if self.kl_coef or self.entropy_coef:
            return super().active(batch)
        return ((batch.advantages != 0) & batch.loss_mask).any(1)

    def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return clipped surrogate + kl_coef * KL - entropy_coef * entropy, weighted and summed.

        Metrics: entropy (nats a token), kl (where there is a reference) and clip_frac.
        """
        old = out.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        per_token, clipped = clipped_surrogate(
            out.logprobs - old, batch.advantages, self.clip_low, self.clip_high
        )
        metrics = {"clip_frac": weighted_metric(clipped, batch)}
        if self.kl_coef:
            assert batch.ref_logprobs is not None
            kl = kl_estimate(out.logprobs, batch.ref_logprobs, self.kl_estimator)
            per_token = per_token + self.kl_coef * kl
            metrics["kl"] = weighted_metric(kl, batch)
        if out.entropy is not None:
            metrics["entropy"] = weighted_metric(out.entropy, batch)
            if self.entropy_coef:
                per_token = per_token - self.entropy_coef * out.entropy
        return weighted_sum(per_token, batch), metrics
