"""The proof that sequences in slots of one cache are sampled as each would be alone.

A few texts are read as a rollout is: a first part, then the rest, with the last token decoding. At
each attention, queries, keys and outputs are compared with those of the model's own forward pass,
and so are masks and windows. Then NaN is put into one text: it must not arrive in the others.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from research_rl.agents.kernels import (
    FlatBatch,
    Seen,
    SlotCache,
    Span,
    flat_batch,
    slots_enabled,
)
from research_rl.agents.proofs.claim import Claim, centred, spoiled, state_put_back, tried_length
from research_rl.agents.proofs.witness import finite, stock_pass, witnessed_calls

log = logging.getLogger(__name__)
_SIZES = (9, 6, 11)
_FIRST = 4
"""Tokens that are read at first."""
INSTEAD = "use TurnwiseEngine for this model"


class FlatCall(Protocol):
    """A model called with a flat batch over slots."""

    def __call__(self, batch: FlatBatch, count: int, /) -> Tensor:
        """Logits (count, V) of the first tokens of the batch."""
        ...


@torch.no_grad()
def prove_slots(model: Any, call: FlatCall, plain: FlatCall) -> None:
    """Refuse a model that does not sample from each slot as it would alone.

    Args:
        model: a causal language model, below the wrapper of peft, in evaluation mode.
        call: how it is called.
        plain: the same through the model's own modules, embeddings first.

    Raises:
        NotImplementedError: naming what the model does, and what to use instead.
    """
    claim = Claim("the cached engine", model, INSTEAD)
    claim.check_config()
    device = next(model.parameters()).device
    with torch.autocast(device.type, enabled=False), state_put_back(model):
        texts = _Texts(model, device)
        stock = stock_pass(model, texts.ids)
        if not finite(stock.logits):
            log.warning("%s is taken unproved: its logits are not finite", claim.who)
            return
        with claim.called():
            logits, passes = texts.computed(call)
            calls = witnessed_calls(model, texts.ids)
        claim.check_replaced(len(passes[-1].seen), len(calls))
        _check_leaks(claim, texts, plain)
        for one in passes:
            claim.check_calls(one.seen, [(_chosen(s, one.places), mask) for s, mask in calls])
        must, got = "compute what the model does", "whose logits differ"
        theirs = stock.logits[torch.arange(len(logits)), texts.lengths - 1]
        claim.check_equal(centred(logits), centred(theirs), must, got)
        moved, elsewhere = texts.computed(call, (2, 0, 1))
        must, got = "not see where a sequence stands in the batch", "whose {} change with that"
        claim.check_equal(centred(moved), centred(logits), must, got.format("logits"))
        for here, there in zip(passes, elsewhere, strict=True):
            ours, theirs = (one.seen[0].k[one.places.argsort()] for one in (there, here))
            claim.check_repeated(ours, theirs, must, got.format("keys"))


@dataclass(frozen=True)
class _Pass:
    """One forward pass: the calls of the attention, and which token of which text stands where."""

    seen: list[Seen]
    places: Tensor  # (tokens,) into all texts behind each other, each as long as the longest


class _Texts:
    """The texts as padded rows, and in slots in a given order.

    Args:
        model: a causal language model.
        device: where its weights lie.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        vocab = model.get_input_embeddings().weight.shape[0]
        sizes = (*_SIZES[:2], max(_SIZES[2], tried_length(model.config)))
        width = max(sizes)
        self.ids = torch.arange(len(sizes) * width, device=device).view(-1, width) * 7 % vocab
        self.lengths = torch.tensor(sizes, device=device)

    def computed(
        self, call: FlatCall, order: tuple[int, ...] = (0, 1, 2), spoil: int | None = None
    ) -> tuple[Tensor, list[_Pass]]:
        """Logits (texts, V) behind each text, and the passes that it took.

        Args:
            call: how the model is called.
            order: of the texts in the slots.
            spoil: a text whose tokens are spoiled.
        """
        device, width = self.ids.device, self.ids.shape[1]
        rows = [self.ids[i, : self.lengths[i]].tolist() for i in order]
        sizes = self.lengths[list(order)]
        last = torch.tensor([row[-1] for row in rows], device=device)
        cache = SlotCache(len(rows), width)
        cache.reserve(width)
        begin = [Span(row[:_FIRST], 0, [slot]) for slot, row in enumerate(rows)]
        rest = [Span(row[_FIRST:-1], _FIRST, [slot]) for slot, row in enumerate(rows)]
        slots = [[s.slots[0] for s in spans for _ in s.ids] for spans in (begin, rest)]
        slots[1] = [*range(len(rows)), *slots[1]]
        first = flat_batch(cache, last[:0], sizes[:0], 0, begin)
        second = flat_batch(cache, last, sizes - 1, width, rest)
        passes, logits = [], torch.empty(0)
        for batch, slot, count in zip((first, second), slots, (0, len(rows)), strict=True):
            batch.seen = []
            text = torch.tensor([order[i] for i in slot], device=device)
            wrong = nullcontext() if spoil is None else spoiled(self._model, text[None] == spoil)
            with slots_enabled(self._model), wrong:
                logits = call(batch, count)
            passes.append(_Pass(batch.seen, text * width + batch.positions))
        return logits[torch.tensor(order).argsort()].float(), passes


def _check_leaks(claim: Claim, texts: _Texts, plain: FlatCall) -> None:
    """Spoil a text: the others stay as they are, in this batch and in the next one."""
    before, _ = texts.computed(plain)
    for text in range(len(before)):
        spoil = torch.arange(len(before), device=before.device) == text
        claim.check_apart(texts.computed(plain, spoil=text)[0], spoil, "sequences")
    again, _ = texts.computed(plain)
    must = "keep nothing of one batch for the next"
    if not finite(again):
        claim.refuse(must, "which keeps a state")
    claim.check_repeated(again, before, must, "whose logits differ a second time")


def _chosen(seen: Seen, places: Tensor) -> Seen:
    q, k, v, out = (x[places] for x in (seen.q, seen.k, seen.v, seen.out))
    return replace(seen, q=q, k=k, v=v, out=out)
