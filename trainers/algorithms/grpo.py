"""GRPO as ReSearch uses it, and the rules that change one formula of it.

DAPO changes the clip and the reward, Dr. GRPO the advantage, GSPO the ratio.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from research_rl.trainers.algorithms.advantages import group_advantages, overlong_penalty
from research_rl.trainers.algorithms.base import check_positive
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.algorithms.losses import (
    Aggregation,
    KLEstimator,
    cispo_surrogate,
    clipped_surrogate,
    geometric_surrogate,
    sequence_log_ratio,
    soft_gate_surrogate,
)
from research_rl.trainers.algorithms.policy_gradient import PolicyGradient, check_groups


class GRPO(PolicyGradient):
    """Group Relative Policy Optimization (https://arxiv.org/abs/2402.03300) as ReSearch uses it.

    ``A = (r - mean of the group) / std of the group``, for every token of the rollout.

    Args:
        clip_low: how far below 1 the importance ratio may fall before it is clipped.
        clip_high: how far above 1; None is the same as clip_low.
        kl_coef: weight of the KL to the reference; 0 needs no reference.
        kl_estimator: k1, k2, k3 or abs.
        entropy_coef: weight of the entropy bonus.
        scale_by_std: divide advantages by the standard deviation of their group's rewards.
        aggregation: token-mean, sequence-mean (as in the GRPO paper), sequence-sum or
            fixed-length.
        fixed_length: tokens a rollout counts as under fixed-length; usually the token budget.
        options: those of PolicyGradient.
    """

    needs_groups = True

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
        **options: Any,
    ) -> None:
        super().__init__(
            clip_low=clip_low,
            clip_high=clip_high,
            kl_coef=kl_coef,
            kl_estimator=kl_estimator,
            entropy_coef=entropy_coef,
            aggregation=aggregation,
            fixed_length=fixed_length,
            **options,
        )
        self.scale_by_std = scale_by_std

    def advantages(self, batch: Batch) -> Tensor:
        """Return the group advantages, (B,).

        Raises:
            ValueError: every rollout is alone in its group, so there is nothing to compare.
        """
        check_groups(batch)
        rewards = self.rewards(batch)
        return group_advantages(rewards, batch.groups, scale_by_std=self.scale_by_std)


class DrGRPO(GRPO):
    """GRPO done right (https://arxiv.org/abs/2503.20783): without its two biases.

    ``A = r - mean of the group``. It is not divided by the std, because that favours questions
    that are too easy or too hard. Each token weighs ``1 / (rows * fixed_length)``, so that the
    tokens of a long wrong rollout do not count less than those of a short one.

    Args:
        fixed_length: the token budget of a rollout.
        kl_coef: weight of the KL to the reference; the paper uses none.
        options: those of GRPO.
    """

    def __init__(self, fixed_length: int, kl_coef: float = 0.0, **options: Any) -> None:
        super().__init__(
            kl_coef=kl_coef,
            scale_by_std=False,
            aggregation="fixed-length",
            fixed_length=fixed_length,
            **options,
        )


class DAPO(GRPO):
    """Decoupled clip and dynamic sampling (https://arxiv.org/abs/2503.14476).

    GRPO with a higher upper clip, the token mean, no KL and a soft penalty on long responses. The
    paper's dynamic sampling is ``model.updates.resample_rounds``, its filter of overlong rollouts
    is ``model.updates.mask_truncated``.

    Args:
        clip_low: how far below 1 the importance ratio may fall before it is clipped.
        clip_high: how far above 1.
        max_tokens: the token budget of a rollout, results included; None is no penalty.
        soft_tokens: how many tokens before max_tokens the penalty begins; it is 1 at max_tokens.
        kl_coef: weight of the KL to the reference; the paper uses none.
        options: those of GRPO.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        max_tokens: int | None = None,
        soft_tokens: int = 512,
        kl_coef: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, kl_coef=kl_coef, **options)
        if max_tokens is not None and not 0 < soft_tokens <= max_tokens:
            raise ValueError(
                f"soft_tokens must lie between 1 and max_tokens, got {soft_tokens} and {max_tokens}"
            )
        self.max_tokens, self.soft_tokens = max_tokens, soft_tokens

    def rewards(self, batch: Batch) -> Tensor:
        """Return each rollout's reward (B,), minus the penalty on its length."""
        rewards = super().rewards(batch)
        if self.max_tokens is None:
            return rewards
        # the policy writes first, so a response begins at the first loss token
        prompt = batch.loss_mask.int().argmax(1) + 1
        lengths = (batch.lengths - prompt) * batch.loss_mask.any(1)
        return rewards + overlong_penalty(lengths, self.max_tokens, self.soft_tokens)


class GSPO(GRPO):
    """Group Sequence Policy Optimization (https://arxiv.org/abs/2507.18071).

    The ratio of a rollout is ``exp(mean of its tokens' log-ratios)`` and is clipped as a whole.
    Its clips are some hundred times narrower than those of token ratios. With one update for each
    batch it is GRPO.

    Args:
        clip_low: how far below 1 the rollout's ratio may fall before it is clipped.
        clip_high: how far above 1.
        kl_coef: weight of the KL to the reference; the paper uses none.
        options: those of GRPO.
    """

    def __init__(
        self,
        clip_low: float = 3e-4,
        clip_high: float = 4e-4,
        kl_coef: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(
            clip_low=clip_low,
            clip_high=clip_high,
            kl_coef=kl_coef,
            aggregation="sequence-mean",
            **options,
        )

    def surrogate(
        self, logprobs: Tensor, log_ratio: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """Return the clipped surrogate of the rollout's ratio at each token, (B, T)."""
        ratio = sequence_log_ratio(log_ratio, batch.loss_mask)
        return clipped_surrogate(ratio, batch.advantages, self.clip_low, self.clip_high)


class CISPO(GRPO):
    """Clipped importance-sampling weights (https://arxiv.org/abs/2506.13585), of MiniMax-M1.

    REINFORCE with ``sg[clip(ratio)]`` as a weight. A clipped token keeps its gradient, so that rare
    but decisive tokens are still learned.

    Args:
        clip_low: how far below 1 the weight may fall; 1 is no bound, as in the paper.
        clip_high: how far above 1 the weight may rise; 4 is a largest weight of 5, as in ScaleRL
            (https://arxiv.org/abs/2510.13786).
        kl_coef: weight of the KL to the reference; the paper uses none.
        options: those of GRPO.
    """

    separable = True

    def __init__(
        self,
        clip_low: float = 1.0,
        clip_high: float = 4.0,
        kl_coef: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(clip_low=clip_low, clip_high=clip_high, kl_coef=kl_coef, **options)

    def surrogate(
        self, logprobs: Tensor, log_ratio: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``-sg[clip(ratio)] * A * logp`` at each token, (B, T)."""
        return cispo_surrogate(logprobs, log_ratio, batch.advantages, self.clip_low, self.clip_high)


class GMPO(GRPO):
    """Geometric-Mean Policy Optimization (https://arxiv.org/abs/2507.20673).

    The geometric mean of a rollout's token ratios in place of their arithmetic mean. It is moved
    less by outliers, which allows a wider clip. Each token's log-ratio is clipped.

    Args:
        clip_low: how far below 0 the log-ratio of a token may fall.
        clip_high: how far above 0.
        kl_coef: weight of the KL to the reference; the paper uses none.
        options: those of GRPO.
    """

    def __init__(
        self,
        clip_low: float = 0.4,
        clip_high: float = 0.4,
        kl_coef: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(
            clip_low=clip_low,
            clip_high=clip_high,
            kl_coef=kl_coef,
            aggregation="sequence-mean",
            **options,
        )

    def surrogate(
        self, logprobs: Tensor, log_ratio: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``-A * geometric mean`` at each token, (B, T)."""
        return geometric_surrogate(
            log_ratio, batch.advantages, batch.loss_mask, self.clip_low, self.clip_high
        )


class SAPO(GRPO):
    """Soft Adaptive Policy Optimization (https://arxiv.org/abs/2511.20347).

    A sigmoid gate in place of the clip: ``4 / tau * sigmoid(tau * (ratio - 1)) * A``, with a
    larger tau where the advantage is not positive.

    Args:
        tau_positive: how fast the slope goes to 0 if the advantage is positive.
        tau_negative: the same if it is not.
        kl_coef: weight of the KL to the reference; the paper uses none.
        options: those of GRPO; the clips have no effect.
    """

    separable = True

    def __init__(
        self,
        tau_positive: float = 1.0,
        tau_negative: float = 1.05,
        kl_coef: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(kl_coef=kl_coef, aggregation="sequence-mean", **options)
        self.tau_positive = check_positive("tau_positive", tau_positive)
        self.tau_negative = check_positive("tau_negative", tau_negative)

    def surrogate(
        self, logprobs: Tensor, log_ratio: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gated surrogate at each token, (B, T); nothing is clipped."""
        gated = soft_gate_surrogate(
            log_ratio, batch.advantages, self.tau_positive, self.tau_negative
        )
        return gated, None
