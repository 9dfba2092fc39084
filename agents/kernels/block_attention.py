"""Attention of a block of queries over its keys, with a gradient chosen for the device.

On a CPU in bfloat16 the gradient is computed by plain matrix products, which are faster there than
the kernel that torch would take.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from research_rl.agents.kernels.torch_internals import plain_kernels, softmax_backward


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Attention (c, H, m, Dv) of queries (c, H, m, D) over keys (c, Hk, n, D).

    Args:
        q: (c, H, m, D).
        k: (c, Hk, n, D).
        v: (c, Hk, n, Dv).
        mask: additive, (c, 1, m, n), in the dtype of q.
        scaling: of the scores; D ** -0.5 when None.
        dropout: of the attention weights.
        softcap: scores are bent to stay within it (Gemma 2).
    """
    scale = q.shape[3] ** -0.5 if scaling is None else scaling
    if softcap is not None:
        return _bent(q, k, v, mask, scale, dropout, softcap)
    low = q.dtype == k.dtype == v.dtype == torch.bfloat16
    on_cpu = q.device.type == "cpu" and not plain_kernels()
    if low and on_cpu and not dropout and torch.is_grad_enabled():
        found: Tensor = _FusedForward.apply(q, k, v, mask, scale)  # type: ignore[no-untyped-call]
        return found
    return _fused(q, k, v, mask, scale, dropout)


def _fused(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float = 0.0
) -> Tensor:
    if q.device.type != "cpu" and q.shape[1] != k.shape[1]:
        return _folded(q, k, v, mask, scale, dropout)
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _folded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float) -> Tensor:
    """The query heads that share a key head as more queries of one.

    No kernel for GPUs takes both a mask and shared key heads; without one all scores are written.
    """
    rows, heads, size, dim = q.shape
    groups = k.shape[1]
    wide = mask.repeat(1, 1, heads // groups, 1)
    folded = q.reshape(rows, groups, -1, dim)
    mixed = F.scaled_dot_product_attention(folded, k, v, wide, dropout, scale=scale)
    return mixed.view(rows, heads, size, -1)


def _bent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
    dropout: float,
    softcap: float,
) -> Tensor:
    rows, heads, size, dim = q.shape
    folded = (q * scale).reshape(rows, k.shape[1], -1, dim)
    scores = (folded @ k.transpose(2, 3)).view(rows, heads, size, -1).float()
    weights = ((scores / softcap).tanh() * softcap + mask).softmax(-1).to(v.dtype)
    weights = F.dropout(weights, dropout, training=dropout > 0)
    mixed = weights.view(rows, k.shape[1], -1, k.shape[2]) @ v
    return mixed.view(rows, heads, size, -1)


class _FusedForward(torch.autograd.Function):
    """The fused kernel forward, batched products backward.

    In bfloat16 on a CPU the fused kernel takes seven times as long backward as forward. The scores
    of a block are small enough to be computed again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        """See attend."""
        ctx.save_for_backward(q, k, v, mask)
        ctx.scale = scale
        return _fused(q, k, v, mask, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Compute the weights again; d scores = weights (d weights - sum(weights d weights)).

        The query heads that share a key head are folded into the queries.
        """
        q, k, v, mask = ctx.saved_tensors
        rows, heads, size, dim = q.shape
        groups, width = k.shape[1:3]
        k, v = k.contiguous(), v.contiguous()
        folded = (q * ctx.scale).reshape(rows, groups, -1, dim)
        change = gradients[0].reshape(rows, groups, -1, v.shape[3])
        scores = (folded @ k.transpose(2, 3)).view(rows, heads, size, width).add_(mask)
        weights = scores.softmax(-1)
        of_weights = (change @ v.transpose(2, 3)).view_as(weights)
        of_scores = softmax_backward(of_weights, weights)
        flat, slope = (x.view(rows, groups, -1, width) for x in (weights, of_scores))
        of_q = (slope @ k).view_as(q) * ctx.scale
        return of_q, slope.transpose(2, 3) @ folded, flat.transpose(2, 3) @ change, None, None
