"""Checks for an attention function of our own inside a Hugging Face model.

A model may ask its attention for something that ours does not do, a bias for instance. That is
refused by name, for the result would be wrong without any error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from research_rl.agents.kernels.model_config import text_config

_HARMLESS = frozenset(
    {
        "cache_position",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
"""What a model hands its attention that changes nothing where the batch says who sees whom."""


@dataclass(frozen=True)
class Seen:
    """What one call of an attention was given and what it returned, kept for a proof."""

    q: Tensor  # (n, H, D)
    k: Tensor  # (tokens, Hk, D)
    v: Tensor  # (tokens, Hk, Dv)
    out: Tensor  # (n, H, Dv)
    scaling: float
    window: int | None
    """Keys a query sees, itself included; None for all."""
    softcap: float | None


def refuse_unknown(
    who: str,
    module: nn.Module,
    mask: Tensor | None,
    batch: object,
    kwargs: dict[str, Any],
    instead: str = "",
) -> None:
    """Refuse a call in which a model asks its attention for what it does not do.

    Args:
        who: must honour it.
        module: the attention layer, for its name.
        mask: the model's own mask, which must be None.
        batch: the layout of the flat batch, which must not be.
        kwargs: what else the model hands over; anything unknown that is set is refused.
        instead: what to do, if there is anything.

    Raises:
        NotImplementedError: naming it.
    """
    unknown = sorted(k for k, v in kwargs.items() if v is not None and k not in _HARMLESS)
    if mask is not None:
        unknown.append("attention_mask")
    if batch is None:
        unknown.append("a forward pass of its own")
    if unknown:
        raise NotImplementedError(
            f"{who} must honour all that {type(module).__name__} asks of its attention, "
            f"got {', '.join(unknown)}" + (f"; {instead}" if instead else "")
        )


def flat_inputs(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the arguments of a model's attention in the shapes of a flat batch.

    Args:
        query: (1, H, tokens, D).
        key: (1, Hk, tokens, D).
        value: (1, Hk, tokens, Dv).
        scaling: of the scores; D ** -0.5 when None.

    Returns:
        Queries, keys and values with the tokens first, and the scaling.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return q, k, v, query.shape[3] ** -0.5 if scaling is None else scaling


def rope_types(config: Any) -> set[str]:
    """Kinds of rotary embedding of a model's config, of all layer types."""
    rope = getattr(text_config(config), "rope_parameters", None) or {}
    kinds = [rope, *(v for v in rope.values() if isinstance(v, dict))]
    return {str(k["rope_type"]) for k in kinds if "rope_type" in k}
