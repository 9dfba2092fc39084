"""Sampling of one token from each row of logits, with random numbers that belong to the row alone.

The uniform number of a token is a hash of its sequence's seed and its position, so what a sequence
samples does not depend on what else is in the batch.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from research_rl.agents.types import SamplingParams

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_ALL = (1 << 64) - 1
_HEAD = 256
"""Candidates looked at first for top_p; a wider nucleus costs a full sort."""


def seed_of(*keys: int | str) -> int:
    """A 63-bit seed that is a function of the keys alone, e.g. seed_of(run, step, row)."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def check_params(params: SamplingParams) -> None:
    """Refuse settings that cannot be sampled with.

    Raises:
        ValueError: naming the setting and what it must be.
    """
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        raise ValueError(f"temperature must be at least 0, got {params.temperature}; 0 is greedy")
    if not 0 < params.top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {params.top_p}; 1 is all tokens")
    if params.top_k < 0:
        raise ValueError(f"top_k must be at least 0, got {params.top_k}; 0 is all tokens")
    if params.max_response_tokens < 1:
        raise ValueError(
            f"max_response_tokens must be at least 1, got {params.max_response_tokens}; raise it"
        )
    if not 0 <= params.min_new_tokens <= params.max_response_tokens:
        raise ValueError(
            f"min_new_tokens must be in [0, max_response_tokens = {params.max_response_tokens}], "
            f"got {params.min_new_tokens}; 0 lets a turn end at once"
        )
    if params.max_result_tokens is not None and params.max_result_tokens < 1:
        raise ValueError(
            f"max_result_tokens must be at least 1, got {params.max_result_tokens}; "
            "use null for no cap"
        )


def check_trainable(params: SamplingParams) -> None:
    """Refuse settings under which a learner cannot recompute the sampled log-probs.

    The learner divides the logits by the temperature and nothing else. What top_p, top_k and
    min_new_tokens cut off would count as probability there, so the ratio of new and sampled
    probabilities would be wrong from the first update on.

    Raises:
        ValueError: naming the setting and what it must be.
    """
    check_params(params)
    if params.temperature == 0:
        raise ValueError(
            f"temperature must be positive in training, got {params.temperature}; a greedy group "
            "has equal rollouts and teaches nothing"
        )
    for name, neutral in (("top_p", 1.0), ("top_k", 0), ("min_new_tokens", 0)):
        if (value := getattr(params, name)) != neutral:
            raise ValueError(
                f"{name} must be {neutral} in training, got {value}: log-probs are recomputed from "
                "the temperature alone; shape the sampling by temperature, or set it for "
                "validation only"
            )


def suppress_ends(
    logits: Tensor, ends: Tensor, positions: Tensor, params: SamplingParams
) -> Tensor:
    """Logits (B, V) without the tokens that could end a turn, in rows short of min_new_tokens.

    Args:
        logits: (B, V).
        ends: (V,) bool, the tokens that end a sequence or could complete a stop string.
        positions: (B,) how many tokens each response holds.
        params: for min_new_tokens; results come behind a turn, so all those tokens are sampled.
    """
    if not params.min_new_tokens:
        return logits
    early = positions < params.min_new_tokens
    return logits.masked_fill(early[:, None] & ends, -torch.inf)


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """One float64 in [0, 1) for each (seed, position): splitmix64 over both.

    Source: https://prng.di.unimi.it/splitmix64.c

    Args:
        seeds: (B,) int64.
        positions: (B,) int64, the index of the token in its response.
    """
    bits = _mix(_mix(seeds) + positions * _GOLDEN)
    return ((bits >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def seed_at(seed: int, position: int) -> int:
    """The seed whose draws from position 0 on are those of ``seed`` from ``position`` on.

    So a turn that begins there can be sampled as if it were a rollout of its own, by a server that
    knows nothing of what stands before: ``uniforms(seed_at(s, p), i) == uniforms(s, p + i)``.

    Args:
        seed: of the rollout, int64.
        position: tokens of the response before the turn.
    """
    bits = (_mix_int(seed) + position * _GOLDEN) & _ALL
    bits = (_unshift(bits, 31) * pow(_MIX_2, -1, 1 << 64)) & _ALL
    bits = (_unshift(bits, 27) * pow(_MIX_1, -1, 1 << 64)) & _ALL
    bits = _unshift(bits, 30)
    return bits - (bits >> 63 << 64)


def _mix_int(z: int) -> int:
    """``_mix`` of one number."""
    z &= _ALL
    z = (z ^ (z >> 30)) * _MIX_1 & _ALL
    z = (z ^ (z >> 27)) * _MIX_2 & _ALL
    return z ^ (z >> 31)


def _unshift(z: int, by: int) -> int:
    """The x of which z is ``x ^ (x >> by)``."""
    x = z
    for _ in range(64 // by):
        x = z ^ (x >> by)
    return x


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, by: int) -> Tensor:
    """Logical right shift of int64."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def sample(logits: Tensor, params: SamplingParams, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token from each row by the inverse of its cumulative distribution.

    Args:
        logits: (B, V).
        params: temperature, top_p and top_k; top_k is applied first, top_p to what it leaves.
        uniform: (B,) float64 in [0, 1); not read when greedy.

    Returns:
        tokens (B,) int64 and their log-probs (B,) float32 under the distribution they were drawn
        from: after temperature, top_k and top_p. Greedy: under the one at temperature 1. The
        log-prob of a row whose logits are not finite is not finite.
    """
    x = logits.float()
    if params.temperature == 0:
        best, tokens = x.max(-1)
        return tokens, best - x.logsumexp(-1)
    if params.temperature != 1.0:
        x = x / params.temperature
    if params.top_p < 1.0 or 0 < params.top_k < x.shape[-1]:
        return _sample_head(x, params, uniform)
    return _sample_all(x, uniform)


def _sample_all(x: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Two-level inverse CDF: find the block of the vocabulary, then the token inside it."""
    rows, vocab = x.shape
    block = max(32, 1 << (math.isqrt(vocab).bit_length()))
    blocks = -(-vocab // block)
    p = x.softmax(-1)
    padded = F.pad(p, (0, blocks * block - vocab)) if vocab % block else p
    parts = padded.view(rows, blocks, block)
    mass = parts.sum(-1).double()  # (B, blocks); few addends each, so float32 does for them
    ends = mass.cumsum(-1)
    total = ends[:, -1:]
    point = uniform[:, None] * total
    which = torch.searchsorted(ends, point, right=True).clamp_(max=blocks - 1)
    below = ends.gather(-1, which) - mass.gather(-1, which)
    inner = parts.gather(1, which[:, :, None].expand(rows, 1, block))[:, 0].double().cumsum(-1)
    tokens = (which * block + _first_above(inner, point - below)).clamp_(max=vocab - 1)
    logprobs = (p.gather(-1, tokens) / total).log().float()
    return tokens[:, 0], logprobs[:, 0]


def _sample_head(x: Tensor, params: SamplingParams, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse CDF over the likeliest tokens, sorted; all of them where the nucleus needs it."""
    vocab = x.shape[-1]
    count = min(vocab, params.top_k or _HEAD)
    values, ids = x.topk(count, -1)
    log_z = (values if params.top_k else x).double().logsumexp(-1, keepdim=True)
    p = (values.double() - log_z).exp()
    if count < vocab and not params.top_k and bool((p.sum(-1) < params.top_p).any()):
        values, ids = x.sort(-1, descending=True)
        p = (values.double() - log_z).exp()
    outside = p.cumsum(-1) - p >= params.top_p  # the mass before it suffices already
    p = p.masked_fill(outside, 0.0)
    ends = p.cumsum(-1)
    total = ends[:, -1:]
    which = _first_above(ends, uniform[:, None] * total).clamp_(max=p.shape[-1] - 1)
    logprobs = (p.gather(-1, which) / total).log().float()
    return ids.gather(-1, which)[:, 0], logprobs[:, 0]


def _first_above(ends: Tensor, point: Tensor) -> Tensor:
    """Index (B, 1) of the first cumulative sum above the point, one that has probability."""
    limit = torch.nextafter(ends[:, -1:], torch.zeros_like(point))
    return torch.searchsorted(ends, torch.minimum(point, limit).clamp_(min=0.0), right=True)
