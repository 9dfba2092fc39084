"""The formulas of the policy loss, one function each; per-token tensors are (B, T)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["token-mean", "sequence-mean", "fixed-length"]

KL_LIMIT = 10.0
"""k3 is cut to [-10, 10], as in the code of ReSearch (https://github.com/Agent-RL/ReCall)."""


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(policy || reference) at each token, (B, T).

    With d = ref - logp: k1 = -d; k2 = d^2 / 2; k3 = exp(d) - d - 1, never negative, cut to
    [-10, 10]. Source: http://joschu.net/blog/kl-approx.html.

    Args:
        logprobs: (B, T) under the policy, with gradient.
        ref_logprobs: (B, T) under the reference.
        estimator: k1, k2 or k3.
    """
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    # beyond 2 * KL_LIMIT the result is cut anyway, and an overflow would make its gradient NaN
    log_ratio = log_ratio.clamp(-2 * KL_LIMIT, 2 * KL_LIMIT)
    return (log_ratio.exp() - log_ratio - 1).clamp(-KL_LIMIT, KL_LIMIT)


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return PPO's loss and where the clip took the gradient away, both (B, T).

    The loss is ``-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)``, equation 7 of
    https://arxiv.org/abs/1707.06347; with clip_high above clip_low it is "clip-higher" of
    https://arxiv.org/abs/2503.14476.

    Args:
        log_ratio: (B, T) log-probs under the policy minus those under the sampling policy.
        advantages: (B, T).
        clip_low: how far below 1 the ratio may fall.
        clip_high: how far above 1 the ratio may rise.
    """
    ratio = log_ratio.exp()
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return torch.maximum(plain, clipped), clipped > plain


def token_weights(
    mask: Tensor,
    aggregation: Aggregation,
    num_tokens: Tensor,
    num_rows: Tensor,
    length: int | None = None,
) -> Tensor:
    """Return each token's share in the loss, (B, T), 0 where the mask is False.

    The loss is ``(per_token * weights).sum()``. A sum splits over micro-batches and ranks, so
    neither can change the gradient.

    Args:
        mask: (B, T) bool, the tokens that the policy wrote.
        aggregation: "token-mean": every token weighs the same (https://arxiv.org/abs/2503.14476);
            "sequence-mean": every rollout does (https://arxiv.org/abs/2402.03300);
            "fixed-length": every token weighs 1 / (length * rows), whatever the lengths
            (https://arxiv.org/abs/2503.20783).
        num_tokens: () True entries of the whole optimizer step's masks, mean over ranks.
        num_rows: () rollouts of the optimizer step, mean over ranks.
        length: the constant of "fixed-length".

    Raises:
        ValueError: "fixed-length" without a length.
    """
    if aggregation == "token-mean":
        return mask / num_tokens
    if aggregation == "sequence-mean":
        return mask / mask.sum(1, keepdim=True).clamp(min=1) / num_rows
    if length is None:
        raise ValueError("fixed-length aggregation must have a length, got None")
    return mask / (length * num_rows)
