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
    SlotCache,
    Span,
    attend_slots,
    decoder_of,
    flat_batch,
    pack_linears,
    rope_types,
    slots_enabled,
    text_config,
)


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
        """Compare the next-token logits of two short texts with the stock forward pass.

        Raises:
            NotImplementedError: they differ, or the model's attention cannot be replaced.
        """
        name, config = type(self.model).__name__, text_config(self.model.config)
        dynamic = rope_types(config) & {"dynamic", "longrope"}
        if dynamic:
            raise NotImplementedError(
                "the cached engine must see positions that do not depend on the batch, got "
                f"{name} with rope_type {dynamic.pop()!r}; use TurnwiseEngine for this model"
            )
        if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
            raise NotImplementedError(
                "the cached engine must see which keys a query may look at, got "
                f"{name}, which attends in chunks; use TurnwiseEngine for this model"
            )
        vocab = self.model.get_input_embeddings().weight.shape[0]
        texts = [[(7 * i + 3 * n) % vocab for i in range(n)] for n in (9, 6)]
        with torch.autocast(self.device.type, enabled=False):
            stock, ours = self._stock_logits(texts), self._tried_logits(texts)
        worst = float((ours - stock).abs().max() / stock.abs().max().clamp(min=1.0))
        if bool(stock.isfinite().all()) and not worst <= _tolerance(self.model):
            raise NotImplementedError(
                f"the cached engine must compute what {name} does, got logits that differ by "
                f"{worst:.2g} of their size; use TurnwiseEngine for this model"
            )

    def _stock_logits(self, texts: list[list[int]]) -> Tensor:
        """Logits (B, V) behind each text by the model's own attention."""
        rows = [torch.tensor([t], device=self.device) for t in texts]
        logits = [self.model(input_ids=row, use_cache=False).logits[:, -1] for row in rows]
        return torch.cat(logits).float()

    def _tried_logits(self, texts: list[list[int]]) -> Tensor:
        """_slot_logits, where a model that cannot be called so is refused."""
        try:
            return self._slot_logits(texts)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, TypeError, KeyError, IndexError, ValueError, RuntimeError) as error:
            if isinstance(error, NotImplementedError):
                raise
            raise NotImplementedError(
                "the cached engine must call the model with its own attention, got "
                f"{type(error).__name__} from {type(self.model).__name__}: {error}; "
                "use TurnwiseEngine for this model"
            ) from error

    def _slot_logits(self, texts: list[list[int]]) -> Tensor:
        """The same over slots: four tokens, then the rest but one, with the last one decoding."""
        cache = SlotCache(len(texts), 16)
        cache.reserve(16)
        lengths = torch.tensor([len(t) - 1 for t in texts], device=self.device)
        last = torch.tensor([t[-1] for t in texts], device=self.device)
        begin = [Span(t[:4], 0, [i]) for i, t in enumerate(texts)]
        rest = [Span(t[4:-1], 4, [i]) for i, t in enumerate(texts)]
        longest = max(map(len, texts))
        with slots_enabled(self.model):
            self(flat_batch(cache, last[:0], lengths[:0], 0, begin), 0)
            batch = flat_batch(cache, last, lengths, longest, rest)
            logits = self(batch, len(texts))
        self._check_window({w for block in batch.blocks for w, _, _ in block.masks} - {None})
        return logits.float()

    def _check_window(self, seen: set[int | None]) -> None:
        """Refuse a model that looks through a window without saying so to its attention.

        The texts of the check are shorter than a real window, so their logits would not tell.
        """
        config = text_config(self.model.config)
        layers = getattr(config, "layer_types", None) or ("sliding_attention",)
        window = getattr(config, "sliding_window", None)
        if window and "sliding_attention" in layers and not seen:
            raise NotImplementedError(
                "the cached engine must be told of sliding windows by each attention layer, got "
                f"none from {type(self.model).__name__}, whose config has sliding_window = "
                f"{window}; use TurnwiseEngine for this model"
            )


def _tolerance(model: Any) -> float:
    """Difference that rounding explains, as a part of the largest logit."""
    full = next(model.parameters()).dtype in (torch.float32, torch.float64)
    return 0.01 if full else 0.1
