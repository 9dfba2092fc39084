"""What a model's own forward pass does at each attention, written down by an attention of ours.

The model builds its masks as for its eager attention, so that what each layer may look at can be
read off, whatever its weights are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from research_rl.agents.kernels import Seen, attention_replaced

WITNESS = "research_rl_witness"
"""What the model's config calls this attention."""


@dataclass(frozen=True)
class Stock:
    """A model's own forward pass over rows (B, L), padded on the right."""

    logits: Tensor  # (B, L, V)
    states: Tensor  # (B, L, D), what its output head reads


def witness_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    witness: list[tuple[Seen, Tensor | None]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Plain attention by the mask that is given; the transformers interface.

    Args:
        module: the attention layer.
        query: (B, H, L, D).
        key: (B, Hk, L, D).
        value: (B, Hk, L, Dv).
        attention_mask: additive, None for all.
        scaling: of the scores; D ** -0.5 when None.
        dropout: 0.
        sliding_window: kept; the mask says who sees whom.
        softcap: scores are bent to stay within it (Gemma 2).
        witness: the call is added to it.
        kwargs: left out; the attention that is put to the proof refuses them.

    Returns:
        (B, L, H, Dv) and None.
    """
    if witness is None:
        raise NotImplementedError(f"{type(module).__name__} hands nothing on to its attention")
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    shared = query.shape[1] // key.shape[1]
    scores = (query @ key.repeat_interleave(shared, 1).transpose(2, 3)).float() * scale
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1).to(value.dtype)
    out = (weights @ value.repeat_interleave(shared, 1)).transpose(1, 2)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    seen = Seen(q, k, v, out.flatten(0, 1), scale, sliding_window, softcap)
    witness.append((seen, attention_mask))
    return out.contiguous(), None


AttentionInterface.register(WITNESS, witness_attention)
AttentionMaskInterface.register(WITNESS, eager_mask)


def stock_pass(model: Any, ids: Tensor) -> Stock:
    """The model's own forward pass, by its own attention."""
    read: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, given: read.append(given[0])
    )
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    if len(read) != 1:
        raise NotImplementedError(f"{type(model).__name__} reads its output head in another way")
    return Stock(logits, read[0])


def witnessed_calls(model: Any, ids: Tensor) -> list[tuple[Seen, Tensor | None]]:
    """What the model's own forward pass asks of an attention, call by call.

    Args:
        model: a causal language model.
        ids: (B, L), padded on the right.

    Returns:
        The calls, of all rows behind each other (B * L, ...), and the additive mask
        (B or 1, H or 1, L, L) of each. Empty where the model attends by code of its own.
    """
    calls: list[tuple[Seen, Tensor | None]] = []
    with attention_replaced(model, WITNESS):
        model(input_ids=ids, use_cache=False, witness=calls)
    return calls


def finite(x: Tensor) -> bool:
    """Whether all of a tensor is finite."""
    return bool(torch.isfinite(x).all())
