"""A transformers model called with a flat batch, and the proof that it may be."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from research_rl.agents.attention import FlatBatch, Segment, flat_batch, slots_enabled
from research_rl.agents.kv_cache import SlotCache
from research_rl.agents.policy import LMPolicy


class SlotForward:
    """The policy's model, called with a flat batch.

    Args:
        policy: a peft model is called below its wrapper, adapters on.
    """

    def __init__(self, policy: LMPolicy) -> None:
        model: Any = policy.model
        self.model: Any = model.get_base_model() if hasattr(model, "peft_config") else model
        self._keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def __call__(self, batch: FlatBatch, count: int) -> Tensor:
        """Logits (count, V) of the first tokens of the batch."""
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

    def check(self) -> None:
        """Compare the next-token logits of two short texts with the stock forward pass.

        Raises:
            NotImplementedError: they differ, or the model's attention cannot be replaced.
        """
        name = type(self.model).__name__
        rope = getattr(self.model.config, "rope_parameters", None) or {}
        if rope.get("rope_type") in ("dynamic", "longrope"):
            raise NotImplementedError(
                f"the cached engine must see positions that do not depend on the batch, got "
                f"{name} with rope_type {rope['rope_type']!r}; use ReferenceEngine"
            )
        device = self.device
        vocab = self.model.get_input_embeddings().weight.shape[0]
        texts = [[(7 * i + 3 * n) % vocab for i in range(n)] for n in (9, 6)]
        stock = torch.cat(
            [
                self.model(torch.tensor([t], device=device), use_cache=False).logits[:, -1]
                for t in texts
            ]
        ).float()
        cache = SlotCache(2, 16)
        cache.reserve(16)
        lengths = torch.tensor([len(t) - 1 for t in texts], device=device)
        last = torch.tensor([t[-1] for t in texts], device=device)
        pieces = [
            Segment(t[a:b], a, [i]) for i, t in enumerate(texts) for a, b in ((0, 4), (4, -1))
        ]
        with slots_enabled(self.model):
            self(flat_batch(cache, last[:0], lengths[:0], 0, pieces[::2]), 0)
            ours = self(flat_batch(cache, last, lengths, 9, pieces[1::2]), 2).float()
        worst = float((ours - stock).abs().max() / stock.abs().max().clamp(min=1.0))
        tolerance = 1e-3 if _full_precision(self.model) else 0.1
        if not worst <= tolerance:
            raise NotImplementedError(
                f"the cached engine must compute what {name} does, got logits that differ by "
                f"{worst:.2g} of their size; use ReferenceEngine for this model"
            )


def _full_precision(model: Any) -> bool:
    """Whether the weights are in full precision."""
    return bool(next(model.parameters()).dtype in (torch.float32, torch.float64))
