"""Formulas of the policy loss, one function each; per-token tensors are (B, T).

They are pure functions of tensors, so that each can be tested against the equation of its paper.
``sg[x]`` below is x without a gradient.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3", "abs"]
Aggregation = Literal["token-mean", "sequence-mean", "sequence-sum", "fixed-length"]
CorrectionKind = Literal["truncate", "mask"]

KL_LIMIT = 10.0
"""k3 is cut to [-10, 10], as in the code of ReSearch (https://github.com/Agent-RL/ReCall)."""


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(policy || reference) at each token, (B, T).

    With d = ref - logp: k1 = -d; k2 = d^2 / 2; k3 = exp(d) - d - 1, never negative, cut to
    [-10, 10]; abs = |d|. Source: http://joschu.net/blog/kl-approx.html. On samples of the policy
    itself only k2 has the gradient of the KL; the gradient of k1 is 0 in the mean.

    Args:
        logprobs: (B, T) under the policy, with gradient.
        ref_logprobs: (B, T) under the reference.
        estimator: k1, k2, k3 or abs.
    """
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "abs":
        return log_ratio.abs()
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    # beyond 2 * KL_LIMIT the result is cut anyway; an overflow of exp would make the gradient NaN
    log_ratio = log_ratio.clamp(-2 * KL_LIMIT, 2 * KL_LIMIT)
    return (log_ratio.exp() - log_ratio - 1).clamp(-KL_LIMIT, KL_LIMIT)


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return PPO's loss and where the clip removed the gradient, both (B, T).

    The loss is ``-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)``, equation 7 of
    https://arxiv.org/abs/1707.06347; with clip_high above clip_low it is "clip-higher" of
    https://arxiv.org/abs/2503.14476.

    Args:
        log_ratio: (B, T) log-probs of the policy minus those before the update.
        advantages: (B, T).
        clip_low: how far below 1 the ratio may fall.
        clip_high: how far above 1 the ratio may rise.
    """
    ratio = log_ratio.exp()
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return torch.maximum(plain, clipped), clipped > plain


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Return the mean log-ratio of each row, repeated on its tokens, (B, T).

    The value at each token is ``sg[mean] + x - sg[x]``: the mean, with the gradient of the token's
    own x. Under sequence-mean these gradients add up to that of the mean. It is GSPO-token of
    https://arxiv.org/abs/2507.18071.

    Args:
        log_ratio: (B, T).
        mask: (B, T) bool, the loss tokens; other columns may hold anything.
    """
    own = log_ratio.masked_fill(~mask, 0.0)
    mean = own.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return mean.detach() + own - own.detach()


def cispo_surrogate(
    logprobs: Tensor, log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return CISPO's loss and which tokens were clipped, both (B, T).

    The loss is ``-sg[clip(ratio, 1 - clip_low, 1 + clip_high)] * A * logp``: the clip bounds the
    weight of a token and keeps its gradient, https://arxiv.org/abs/2506.13585.

    Args:
        logprobs: (B, T) with gradient.
        log_ratio: (B, T), see :func:`clipped_surrogate`.
        advantages: (B, T).
        clip_low: how far below 1 the weight may fall; 1 is no bound.
        clip_high: how far above 1 the weight may rise.
    """
    ratio = log_ratio.detach().exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages * logprobs, ratio != weight


def geometric_surrogate(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return ``-A * geometric mean of the clipped ratios`` and where they are clipped, (B, T).

    Each token's log-ratio is cut to [-clip_low, clip_high], but only on the side on which PPO's
    clip would cut. The geometric mean is the exponential of the row's mean. Source:
    https://arxiv.org/abs/2507.20673, whose clip of (e^-0.4, e^0.4) is 0.4 and 0.4 here.

    Args:
        log_ratio: (B, T), see :func:`clipped_surrogate`.
        advantages: (B, T); the formula is the paper's where they are equal along a row.
        mask: (B, T) bool, the loss tokens.
        clip_low: of the log-ratio.
        clip_high: of the log-ratio.
    """
    bounded = log_ratio.clamp(-clip_low, clip_high)
    kept = torch.where(
        advantages > 0, torch.minimum(log_ratio, bounded), torch.maximum(log_ratio, bounded)
    )
    return -advantages * sequence_log_ratio(kept, mask).exp(), kept != log_ratio


def soft_gate_surrogate(
    log_ratio: Tensor, advantages: Tensor, tau_positive: float, tau_negative: float
) -> Tensor:
    """Return ``-A * 4 / tau * sigmoid(tau * (ratio - 1))``, (B, T).

    The soft gate of https://arxiv.org/abs/2511.20347, in place of a clip: at a ratio of 1 its slope
    is that of the ratio itself, and on both sides it goes to 0.

    Args:
        log_ratio: (B, T), see :func:`clipped_surrogate`.
        advantages: (B, T).
        tau_positive: how fast the slope goes to 0 if the advantage is positive.
        tau_negative: the same if it is not; larger, because such updates are less stable.
    """
    tau = torch.where(advantages > 0, tau_positive, tau_negative)
    return -advantages * torch.sigmoid(tau * (log_ratio.exp() - 1)) * 4 / tau


def fallen_likelihood(log_ratio: Tensor, advantages: Tensor, turns: Tensor) -> Tensor:
    """Return by how many nats each token of a good turn fell, where its whole turn fell, (B, T).

    ``max(0, old - logp)`` on tokens whose advantage is not negative and whose turn became less
    likely as a whole, 0 elsewhere: the regulariser LLDS of https://arxiv.org/abs/2512.04220 with
    its gate over an action, which is a turn here. It has no gradient before the first update.

    Args:
        log_ratio: (B, T), see :func:`clipped_surrogate`.
        advantages: (B, T).
        turns: (B, T) the turn of each loss token, -1 elsewhere.
    """
    own = turns >= 0
    fall, turn = -log_ratio.masked_fill(~own, 0.0), turns.clamp(min=0)
    sums = fall.detach().new_zeros(len(turns), int(turn.max()) + 1)
    fell = sums.scatter_add(1, turn, fall.detach()).gather(1, turn) > 0
    return torch.relu(fall) * (own & fell & (advantages >= 0))


def conditional_kl(log_ratio: Tensor, advantages: Tensor, threshold: float) -> Tensor:
    """Return ``old - logp`` at tokens of a positive advantage whose ratio fell low, (B, T).

    Elsewhere it is 0. On samples of the policy before its updates the mean of ``old - logp`` is
    the KL from that policy to the present one.

    Args:
        log_ratio: (B, T), see :func:`clipped_surrogate`.
        advantages: (B, T).
        threshold: ratio below which a token is held, above 0 and at most 1.
    """
    low = (advantages > 0) & (log_ratio < math.log(threshold))
    return torch.where(low, -log_ratio, 0.0)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Return the critic's loss (B, T), half the squared error.

    ``max((V - R)^2, (V_old + clip(V - V_old, -clip, clip) - R)^2) / 2``, as in OpenAI Baselines;
    see https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, detail 9.

    Args:
        values: (B, T) with gradient.
        old_values: (B, T) before the update.
        returns: (B, T).
        clip: how far an update may move a value; None is no limit.
    """
    plain = (values - returns).square()
    if clip is None:
        return plain / 2
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(plain, (near - returns).square()) / 2


def mismatch_weights(
    log_ratio: Tensor, kind: CorrectionKind, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Return importance weights of learner over sampler, and where they were cut, both (B, T).

    They correct for an engine whose probabilities differ a little from the learner's. "truncate"
    is min(ratio, high), https://openreview.net/forum?id=xsonlP8DRV; "mask" is the ratio if it lies
    in [low, high], else 0, IcePop of https://arxiv.org/abs/2510.18855.

    Args:
        log_ratio: (B, T) log-probs of the learner before its update minus the sampler's.
        kind: truncate or mask.
        low: smallest ratio that a mask keeps.
        high: largest ratio.
    """
    ratio = log_ratio.detach().exp()
    if kind == "truncate":
        return ratio.clamp(max=high), ratio > high
    cut = (ratio < low) | (ratio > high)
    return ratio.masked_fill(cut, 0.0), cut


def token_weights(
    mask: Tensor,
    aggregation: Aggregation,
    num_tokens: Tensor,
    num_rows: Tensor,
    length: int | None = None,
) -> Tensor:
    """Return each token's weight in the loss, (B, T), 0 where the mask is False.

    The loss is ``(per_token * weights).sum()``. A sum can be split over portions and ranks, so
    neither changes the gradient.

    Args:
        mask: (B, T) bool, the tokens that the policy wrote.
        aggregation: "token-mean": every token weighs the same (https://arxiv.org/abs/2503.14476);
            "sequence-mean": every rollout does (https://arxiv.org/abs/2402.03300);
            "sequence-sum": every token weighs 1 / rows, so that log-probs add up to that of the
            rollout (https://arxiv.org/abs/2402.14740);
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
    if aggregation == "sequence-sum":
        return mask / num_rows
    if length is None:
        raise ValueError("fixed-length aggregation must have a length, got None")
    return mask / (length * num_rows)
