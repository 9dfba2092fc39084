"""The proof that packed rollouts are learned from as single ones would be.

Two groups of two short texts are laid flat. At each attention, queries, keys and outputs are
compared with those of the model's own forward pass, and so are masks and windows. Then NaN is put
into some texts: it must not arrive in others. Each text is computed again elsewhere in the batch.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from research_rl.agents.kernels import LMHead, PackedForward, Seen, pack
from research_rl.agents.proofs.claim import Claim, spoiled, state_put_back, tried_length
from research_rl.agents.proofs.witness import Stock, finite, stock_pass, witnessed_calls

log = logging.getLogger(__name__)
_SIZES = ((5, 12), (5, 10), (3, 11), (3, 13))
"""Of the texts: prompt and all. The first two have the same prompt, and the last two."""
_TARGETS = 8
"""Tokens of the vocabulary by which output heads are compared."""


@torch.no_grad()
def prove_packed(forward: PackedForward) -> None:
    """Refuse a model that does not compute each packed rollout as it would alone.

    Args:
        forward: in evaluation mode.

    Raises:
        NotImplementedError: naming what the model does.
    """
    model = forward.model
    claim = Claim("packed learning", model)
    claim.check_config()
    device = model.get_output_embeddings().weight.device
    with torch.autocast(device.type, enabled=False), state_put_back(model):
        texts = _Texts(forward, device)
        stock = stock_pass(model, texts.ids)
        if not finite(stock.logits):
            log.warning("%s is taken unproved: its logits are not finite", claim.who)
            return
        with claim.called():
            states, seen = texts.computed()
            calls = texts.calls_of(witnessed_calls(model, texts.ids))
        claim.check_replaced(len(seen), len(calls))
        _check_leaks(claim, texts, states)
        claim.check_calls(seen, calls)
        must = "compute what the model does"
        claim.check_equal(states, texts.states_of(stock), must, "whose hidden states differ")
        _check_head(claim, forward.head(), stock)
        _check_places(claim, texts, states, seen)


class _Texts:
    """The texts as padded rows, and laid flat in a given order.

    Args:
        forward: what calls the model with them.
        device: where its embeddings lie.
    """

    def __init__(self, forward: PackedForward, device: torch.device) -> None:
        self.forward = forward
        vocab = forward.model.get_output_embeddings().weight.shape[0]
        long = tried_length(forward.model.config)
        sizes = [*_SIZES[:3], (_SIZES[3][0], max(_SIZES[3][1], long))]
        width = max(size for _, size in sizes)
        count = len(sizes) * width
        ids = (torch.arange(count) * 7 % vocab).view(len(sizes), width)
        ids[1, : sizes[1][0]] = ids[0, : sizes[0][0]]
        ids[3, : sizes[3][0]] = ids[2, : sizes[2][0]]
        place = torch.arange(width - 1)
        wanted = [(place >= prompt - 1) & (place < size - 1) for prompt, size in sizes]
        self.ids, self.wanted = ids.to(device), torch.stack(wanted).to(device)
        self.rows, self.columns = self.wanted.nonzero(as_tuple=True)

    def computed(
        self, order: tuple[int, ...] = (0, 1, 2, 3), where: Tensor | None = None
    ) -> tuple[Tensor, list[Seen]]:
        """Hidden states (N, D) and calls of the attention, of the targets by row and column.

        Args:
            order: of the rows in the flat batch.
            where: (N,) bool, the targets whose last read token is spoiled.
        """
        index = torch.tensor(order, device=self.ids.device)
        packed = pack(self.ids[index], self.wanted[index])
        packed.seen = []
        back = torch.argsort(index[packed.rows] * self.ids.shape[1] + packed.columns)
        places = packed.sources[back]
        flat = torch.zeros(1, len(packed.ids), dtype=torch.bool, device=self.ids.device)
        if where is not None:
            flat[0, places[where]] = True
        spoil = nullcontext() if where is None else spoiled(self.forward.model, flat)
        with spoil, self.forward.enabled():
            states = self.forward.hidden(packed)
        calls = [
            replace(s, q=s.q[places], k=s.k[places], v=s.v[places], out=s.out[places])
            for s in packed.seen
        ]
        return states[back], calls

    def states_of(self, stock: Stock) -> Tensor:
        """Hidden states (N, D) of the model's own forward pass, of the targets."""
        return stock.states[self.rows, self.columns]

    def calls_of(self, calls: list[tuple[Seen, Tensor | None]]) -> list[tuple[Seen, Tensor | None]]:
        """Its calls of the attention, of the targets."""
        places = self.rows * self.ids.shape[1] + self.columns
        return [
            (replace(s, q=s.q[places], k=s.k[places], v=s.v[places], out=s.out[places]), mask)
            for s, mask in calls
        ]


def _check_head(claim: Claim, head: LMHead, stock: Stock) -> None:
    """Compare the output head on what the model's own reads, logits as far apart as they spread."""
    states, logits = (x.flatten(0, 1) for x in (stock.states, stock.logits.float()))
    count, vocab = logits.shape
    targets = torch.arange(_TARGETS, device=logits.device) * (vocab // _TARGETS)
    spread = float((logits[:, targets] - logits[:, targets[:1]]).std())
    near = replace(head, temperature=spread or 1.0)  # log-probs of small logits are all alike
    found, _ = near.logprobs(states.repeat_interleave(len(targets), 0), targets.repeat(count))
    ours = found.view(count, -1)
    theirs = logits[:, targets] / near.temperature
    claim.check_equal(
        (ours - ours.mean(1, keepdim=True)).flatten()[None],
        (theirs - theirs.mean(1, keepdim=True)).flatten()[None],
        "compute logits as the model does",
        "whose logits differ",
    )


def _check_places(claim: Claim, texts: _Texts, states: Tensor, seen: list[Seen]) -> None:
    """Compare with the same texts elsewhere in the flat batch."""
    moved, seen_there = texts.computed((2, 3, 0, 1))
    must, got = "not see where a rollout stands in the batch", "whose {} change with that"
    for name, what in (("q", "queries"), ("k", "keys")):
        ours, theirs = getattr(seen_there[0], name), getattr(seen[0], name)
        claim.check_repeated(ours, theirs, must, got.format(what))
    claim.check_equal(moved, states, must, got.format("hidden states"))


def _check_leaks(claim: Claim, texts: _Texts, states: Tensor) -> None:
    """Spoil some texts: the others stay as they are, in this batch and in the next one."""
    rows, first = texts.rows, texts.columns == texts.wanted.float().argmax(1)[texts.rows]
    responses = ((rows == 0) | (rows == 3)) & ~first
    for where in (responses, rows < 2):
        claim.check_apart(texts.computed(where=where)[0], where, "rollouts")
    again, _ = texts.computed()
    must = "keep nothing of one batch for the next"
    if not finite(again):
        claim.refuse(must, "which keeps a state")
    claim.check_repeated(again, states, must, "whose hidden states differ a second time")
