"""The loss that most rules share: surrogate, correction, KL and entropy, weighted and summed.

A rule such as GRPO is then a formula of advantages; GSPO replaces the surrogate as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from research_rl.trainers.algorithms.advantages import group_statistics
from research_rl.trainers.algorithms.base import (
    Algorithm,
    check_known,
    check_not_negative,
    check_positive,
    weighted_metric,
    weighted_sum,
)
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.algorithms.losses import (
    Aggregation,
    CorrectionKind,
    KLEstimator,
    clipped_surrogate,
    kl_estimate,
    mismatch_weights,
    token_weights,
)

if TYPE_CHECKING:
    from research_rl.agents.policy import PolicyOutput

KLPlace = Literal["loss", "reward"]


@dataclass(frozen=True)
class AdaptiveKL:
    """Changes kl_coef so that the KL stays near a target (https://arxiv.org/abs/1909.08593, 2.2).

    After each optimizer step ``coef *= 1 + gain * clip(kl / target - 1, -0.2, 0.2)``.

    Args:
        target: nats per token.
        gain: how fast the coefficient changes.
    """

    target: float
    gain: float = 0.1

    def __post_init__(self) -> None:
        check_positive("kl_control.target", self.target)
        check_positive("kl_control.gain", self.gain)


@dataclass(frozen=True)
class Correction:
    """Weighs each token's loss by its probability under the learner over that under the sampler.

    Needed if another engine or precision samples, or weights of an earlier iteration; see
    losses.mismatch_weights.

    Args:
        kind: truncate (TIS: at most ``high``) or mask (IcePop: 0 outside [low, high]).
        low: smallest ratio that a mask keeps.
        high: largest ratio; 2 is usual for truncate, 5 for mask.
    """

    kind: CorrectionKind = "truncate"
    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        check_known("correction.kind", self.kind, get_args(CorrectionKind))
        if not 0 <= self.low < self.high:
            raise ValueError(
                f"correction.low must lie between 0 and correction.high, got {self.low} and "
                f"{self.high}"
            )


class PolicyGradient(Algorithm):
    """PPO's clipped surrogate with a KL to the reference; a subclass defines the advantages.

    The loss of a token is ``-min(ratio * A, clip(ratio) * A) * correction + kl_coef * KL -
    entropy_coef * entropy``; ``aggregation`` decides the weights of the tokens.

    Args:
        clip_low: how far below 1 the importance ratio may fall before it is clipped.
        clip_high: how far above 1; None is the same as clip_low.
        kl_coef: weight of the KL to the reference; 0 needs no reference.
        kl_estimator: k1, k2, k3 or abs.
        kl_in: add the KL to the loss, or subtract it from the reward.
        kl_control: adapts kl_coef to a target KL; None keeps it fixed.
        entropy_coef: weight of the entropy bonus.
        aggregation: token-mean, sequence-mean, sequence-sum or fixed-length.
        fixed_length: tokens a rollout counts as under fixed-length; usually the token budget.
        correction: importance weights for a sampler that differs from the learner. auto takes
            ``Correction()`` where it does differ, see ``correct``; None uses none.
    """

    needs_old_logprobs = True
    separable = True

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float | None = None,
        kl_coef: float = 0.0,
        kl_estimator: KLEstimator = "k3",
        kl_in: KLPlace = "loss",
        kl_control: AdaptiveKL | None = None,
        entropy_coef: float = 0.0,
        aggregation: Aggregation = "token-mean",
        fixed_length: int | None = None,
        correction: Correction | Literal["auto"] | None = "auto",
    ) -> None:
        super().__init__()
        self.clip_low = check_positive("clip_low", clip_low)
        self.clip_high = clip_low if clip_high is None else check_positive("clip_high", clip_high)
        self.kl_coef = check_not_negative("kl_coef", kl_coef)
        self.entropy_coef = check_not_negative("entropy_coef", entropy_coef)
        self.kl_estimator: KLEstimator = kl_estimator
        self.kl_in: KLPlace = kl_in
        self.aggregation: Aggregation = aggregation
        check_known("kl_estimator", kl_estimator, get_args(KLEstimator))
        check_known("kl_in", kl_in, get_args(KLPlace))
        check_known("aggregation", aggregation, get_args(Aggregation))
        if aggregation == "fixed-length" and (fixed_length is None or fixed_length < 1):
            raise ValueError(
                f"fixed_length must be positive with aggregation fixed-length, got {fixed_length}; "
                "set it to the token budget of a rollout"
            )
        if kl_control is not None and not kl_coef:
            raise ValueError("kl_coef must be positive where kl_control adapts it, got 0")
        self.fixed_length = fixed_length
        self.kl_control = kl_control
        if not (correction is None or correction == "auto" or isinstance(correction, Correction)):
            raise ValueError(f"correction must be a Correction, auto or None, got {correction!r}")
        self.correction = correction if isinstance(correction, Correction) else None
        """In force now; with auto it is None until ``correct`` is called."""
        self.corrects_itself = correction == "auto"
        self.needs_reference = kl_coef > 0
        self.entropy_gradient = entropy_coef > 0
        # what kl_control has multiplied kl_coef by; a buffer, so that a resumed run goes on with it
        self.kl_scale: Tensor | float = 1.0
        if kl_control is not None:
            del self.kl_scale
            self.register_buffer("kl_scale", torch.ones(()))

    def correct(self, reason: str) -> None:
        """Take a truncated importance correction, and log it, if the choice is left to the run."""
        if self.corrects_itself and self.correction is None:
            # a logger of ours has no handler: it would be heard from warnings on
            from pytorch_lightning.utilities import rank_zero_info

            self.correction = Correction()
            rank_zero_info(
                "each token is weighed by its probability under the learner over that under the "
                "sampler, at most %g, because %s; algorithm.correction: null turns it off",
                self.correction.high,
                reason,
            )

    def rewards(self, batch: Batch) -> Tensor:
        """Return each rollout's reward (B,), minus its tokens' KL if kl_in is reward."""
        return batch.rewards - self.kl_penalty(batch).sum(1)

    def kl_penalty(self, batch: Batch) -> Tensor:
        """Return what is subtracted from each token's reward for its KL, (B, T); 0 in the loss."""
        if self.kl_in == "loss" or batch.ref_logprobs is None:
            return torch.zeros_like(batch.sampled_logprobs)
        own = batch.sampled_logprobs if batch.old_logprobs is None else batch.old_logprobs
        kl = kl_estimate(own, batch.ref_logprobs, self.kl_estimator)
        return self.kl_coef * self.kl_scale * kl.masked_fill(~batch.loss_mask, 0.0)

    def weights(self, batch: Batch) -> Tensor:
        """Return each token's weight (B, T) under the chosen aggregation."""
        return token_weights(
            batch.loss_mask, self.aggregation, batch.num_tokens, batch.num_rows, self.fixed_length
        )

    def active(self, batch: Batch) -> Tensor:
        """Return which rows (B,) have an advantage; all if the loss contains KL or entropy."""
        if (self.kl_coef and self.kl_in == "loss") or self.entropy_coef:
            return super().active(batch)
        return ((batch.advantages != 0) & batch.loss_mask).any(1)

    def surrogate(
        self, logprobs: Tensor, log_ratio: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """Return each token's policy loss and where it was clipped, both (B, T).

        Args:
            logprobs: (B, T) with gradient.
            log_ratio: (B, T) the same minus the log-probs before the update.
            batch: a portion of a minibatch, with advantages.
        """
        return clipped_surrogate(log_ratio, batch.advantages, self.clip_low, self.clip_high)

    def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return surrogate * correction + kl_coef * KL - entropy_coef * entropy, summed.

        Metrics: entropy (nats per token), kl and kl_coef (with a reference), clip_frac (share of
        clipped tokens) and corrected (share of tokens whose correction was cut).
        """
        # with a single update the policy has not moved: the ratio is 1 and has a gradient
        old = out.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        per_token, clipped = self.surrogate(out.logprobs, out.logprobs - old, batch)
        metrics: dict[str, Tensor] = {}
        if clipped is not None:
            metrics["clip_frac"] = weighted_metric(clipped, batch)
        if self.correction is not None:
            limits = self.correction
            factor, cut = mismatch_weights(
                old - batch.sampled_logprobs, limits.kind, limits.low, limits.high
            )
            per_token = per_token * factor
            metrics["corrected"] = weighted_metric(cut, batch)
        if batch.ref_logprobs is not None:
            kl = kl_estimate(out.logprobs, batch.ref_logprobs, self.kl_estimator)
            coefficient = self.kl_coef * self.kl_scale
            if self.kl_in == "loss":
                per_token = per_token + coefficient * kl
            metrics["kl"] = weighted_metric(kl, batch)
            metrics["kl_coef"] = weighted_metric(torch.zeros_like(kl) + coefficient, batch)
        if out.entropy is not None:
            metrics["entropy"] = weighted_metric(out.entropy, batch)
            if self.entropy_coef:
                per_token = per_token - self.entropy_coef * out.entropy
        return weighted_sum(per_token, batch), metrics

    def after_update(self, metrics: Mapping[str, Tensor]) -> None:
        """Adapt the weight of the KL if there is a kl_control."""
        # the KL is nan if no rollout of the step had a token to learn from
        if self.kl_control is not None and "kl" in metrics and bool(metrics["kl"].isfinite()):
            error = (metrics["kl"] / self.kl_control.target - 1).clamp(-0.2, 0.2)
            self.kl_scale *= 1 + self.kl_control.gain * error


def check_groups(batch: Batch) -> None:
    """Check that there is a group of more than one rollout.

    Raises:
        ValueError: every rollout is alone in its group, so there is nothing to compare.
    """
    if bool((group_statistics(batch.rewards, batch.groups).size == 1).all()):
        raise ValueError(
            "group_size must be at least 2, got 1; a group compares rollouts of one question"
        )
