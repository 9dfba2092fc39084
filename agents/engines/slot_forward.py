"""The forward pass of the cached engine, and a check that it computes what the model does.

A model may use its cache in a way that is not known here, and would sample wrong tokens without an
error. So a few tokens are computed in both ways first, and a model that differs is refused.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from research_rl.agents.engines.graphs import DecodeGraphs, recorder
from research_rl.agents.kernels import (
    Decoder,
    FlatBatch,
    attend_slots,
    decoder_of,
    pack_linears,
)
from research_rl.agents.proofs import prove_slots


class SlotForward:
    """A model, called with a flat batch.

    Args:
        model: a causal language model; a peft model is called below its wrapper, adapters on.
        own: whether it is the policy's, not a copy that only samples and may be taken apart.
        keeps: the weights of a copy stay as they are, as some are the policy's own.
    """

    def __init__(self, model: nn.Module, own: bool = True, keeps: bool = False) -> None:
        self.own = own
        wrapped: Any = model
        self.model: Any = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
        self._decoder = decoder_of(self.model, copied=not own and not keeps)
        if not own and self._decoder is None:
            pack_linears(self.model)
        self._keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def __call__(self, batch: FlatBatch, count: int) -> Tensor:
        """Logits (count, V) of the first tokens of the batch."""
        if (decoder := self._usable_decoder()) is not None:
            with torch.autocast(self.device.type, enabled=False):  # a copy has its own dtype
                attend = partial(attend_slots, batch)
                return decoder.logits(batch.ids, batch.positions, attend, count)
        return self._plain(batch, count)

    def _plain(self, batch: FlatBatch, count: int) -> Tensor:
        """The same through the model's own modules."""
        kwargs: dict[str, Any] = {}
        if self._keeps and count < len(batch.ids):
            kwargs["logits_to_keep"] = torch.arange(count or 1, device=batch.ids.device)
        out = self.model(
            input_ids=batch.ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            flat=batch,
            **kwargs,
        )
        logits: Tensor = out.logits[0, :count]
        return logits

    def recorded(self, slots: int) -> DecodeGraphs | None:
        """Decode steps of up to so many slots as graphs, where device and model allow it."""
        record = recorder(self.device)
        if record is None or self._usable_decoder() is None:
            return None
        return DecodeGraphs(self, record, slots)

    def _usable_decoder(self) -> Decoder | None:
        """The decoder, but where autocast has the policy's own weights compute otherwise."""
        cast = self.own and torch.is_autocast_enabled(self.device.type)
        return None if cast else self._decoder

    def check(self) -> None:
        """See prove_slots.

        Raises:
            NotImplementedError: the model computes something else over slots.
        """
        prove_slots(self.model, self, self._plain)
