"""The forward pass for learning: all rollouts in one row, no padding, a shared prompt read once.

The rollouts of one question begin with the same prompt. Here it stands once, each response behind
it, and the tokens of a response attend to the prompt and to what stands before them in their own
response. Gradients of all responses meet in the prompt. Works with any transformers model whose
attention goes through ``AttentionInterface``; ``agents/proofs`` refuses the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from research_rl.agents.kernels.block_attention import attend
from research_rl.agents.kernels.decoder import Decoder, decoder_of
from research_rl.agents.kernels.hf_attention import Seen, flat_inputs, refuse_unknown
from research_rl.agents.kernels.lm_head import LMHead
from research_rl.agents.kernels.model_config import logit_scale, text_config
from research_rl.agents.kernels.packing import Packed
from research_rl.agents.kernels.torch_internals import attention_replaced

PACKED = "research_rl_packed"
"""What the model's config calls this attention."""
ENTRY = "packed_hidden"
"""A method of a model that is called instead of the layers below its output head, if it is there:
a model whose weights lie in shards must be entered at its root."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: Packed | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a flat batch, with gradient; the transformers interface.

    Args:
        module: the attention layer, for its name.
        query: (1, H, tokens, D).
        key: (1, Hk, tokens, D).
        value: (1, Hk, tokens, Dv).
        attention_mask: None; the batch says who sees whom.
        scaling: of the scores; D ** -0.5 when None.
        dropout: of the attention weights.
        sliding_window: keys a query sees, itself included; None for all.
        softcap: scores are bent to stay within it (Gemma 2).
        packed: the batch.
        kwargs: what else the model hands over; anything unknown that is set is refused.

    Returns:
        (1, tokens, H, Dv) and None.

    Raises:
        NotImplementedError: the model asks for something that would be left out.
    """
    refuse_unknown("packed learning", module, attention_mask, packed, kwargs)
    assert packed is not None
    q, k, v, scale = flat_inputs(query, key, value, scaling)
    return attend_packed(packed, q, k, v, scale, sliding_window, softcap, dropout)[None], None


def attend_packed(
    packed: Packed,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention (tokens, H, Dv) of a flat batch, with gradient.

    Args:
        packed: the batch.
        q: (tokens, H, D).
        k: (tokens, Hk, D).
        v: (tokens, Hk, Dv).
        scaling: of the scores.
        window: keys a query sees, itself included; None for all.
        softcap: scores are bent to stay within it (Gemma 2).
        dropout: of the attention weights.
    """
    # one gather for all blocks: its backward is one pass over the tokens, not one for each block
    given = None if packed.seen is None else (q, k, v)
    q, k, v = (
        x.index_select(0, index)
        for x, index in ((q, packed.queries), (k, packed.keys), (v, packed.keys))
    )
    parts = zip(
        packed.blocks,
        q.split_with_sizes([block.queries.numel() for block in packed.blocks]),
        k.split_with_sizes([block.keys.numel() for block in packed.blocks]),
        v.split_with_sizes([block.keys.numel() for block in packed.blocks]),
        strict=True,
    )
    out = []
    for block, *tensors in parts:
        shapes = (block.queries.shape, block.keys.shape, block.keys.shape)
        rows = [
            x.view(*s, *x.shape[1:]).transpose(1, 2) for x, s in zip(tensors, shapes, strict=True)
        ]
        mask = block.mask(window, q.dtype)
        mixed = attend(rows[0], rows[1], rows[2], mask, scaling, dropout, softcap)
        out.append(mixed.transpose(1, 2).reshape(-1, mixed.shape[1], mixed.shape[3]))
    found = torch.cat(out).index_select(0, packed.places)
    if packed.seen is not None and given is not None:
        packed.seen.append(Seen(*given, found, scaling, window, softcap))
    return found


AttentionInterface.register(PACKED, packed_attention)


class PackedForward:
    """A causal language model called with a flat batch, below its output head.

    Args:
        model: of transformers, possibly wrapped by peft.
    """

    def __init__(self, model: nn.Module) -> None:
        inner: Any = model
        self.model: Any = inner.get_base_model() if hasattr(inner, "peft_config") else inner

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """In this block the model attends in flat batches; then its own attention is back.

        Backward passes belong inside too: checkpointed activations are computed there again.
        """
        with attention_replaced(self.model, PACKED):
            yield

    def hidden(self, packed: Packed) -> Tensor:
        """Last hidden states (N, D) that predict the targets; call it inside ``enabled``.

        Models that ``decoder_of`` knows are computed by it, with the weights of now.
        """
        if (decoder := self._decoder()) is not None:

            def attend(layer: int, *of_layer: Any) -> Tensor:
                return attend_packed(packed, *of_layer)

            states = decoder.hidden(packed.ids, packed.positions, attend, len(packed.ids))
            return states.index_select(0, packed.sources)
        call = getattr(self.model, ENTRY, None) or self.model.base_model
        out = call(
            input_ids=packed.ids[None],
            position_ids=packed.positions[None],
            use_cache=False,
            packed=packed,
        )
        found: Tensor = out.last_hidden_state[0]
        return found.index_select(0, packed.sources)

    def _decoder(self) -> Decoder | None:
        """The model's layers with the weights of now, where they need not be called themselves."""
        model = self.model
        dropped = model.training and getattr(text_config(model.config), "attention_dropout", 0.0)
        again = model.training and any(
            getattr(module, "gradient_checkpointing", False) for module in model.modules()
        )
        low = torch.is_autocast_enabled(next(model.parameters()).device.type)
        return None if dropped or again or low else decoder_of(model, copied=False)

    def head(self, temperature: float = 1.0) -> LMHead:
        """Return the output head as it is now; call it behind ``hidden``, which gathers shards.

        Raises:
            NotImplementedError: it is not a plain linear layer.
        """
        layer = self.model.get_output_embeddings()
        if type(layer) is not nn.Linear:
            raise NotImplementedError(
                f"packed learning must have a linear output head, got {type(layer).__name__}"
            )
        cap = getattr(text_config(self.model.config), "final_logit_softcapping", None)
        scale = logit_scale(self.model.config)
        return LMHead(layer.weight, layer.bias, cap, temperature, scale)
