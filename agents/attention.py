"""Attention of a flat batch of tokens over the slots of a cache, for any transformers model.

A forward pass carries one token for each sequence that decodes and any number of segments (prompts,
results) that are read at once. Nothing is padded but the queries of segments that attend together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from research_rl.agents.kv_cache import SlotCache
from research_rl.agents.own_attention import attention_replaced, refuse_unknown

NAME = "research_rl_slots"
"""What the model's config calls this attention."""
_MAX_QUERIES = 256
"""Queries of one segment that attend together; bounds the score matrix of a long prompt."""
_MAX_SCORES = 1 << 21
"""Scores (rows x queries x keys) of one head in one block."""


@dataclass(frozen=True)
class Segment:
    """Tokens that are read at once, e.g. a prompt or a result."""

    ids: list[int]
    start: int
    """Position of the first of them."""
    slots: list[int]
    """Where their keys and values go: one slot, or all that share the prompt."""


@dataclass
class Block:
    """Queries that attend together: c rows of m queries over one slot each."""

    tokens: Tensor  # (c, m) into the flat batch; a short row repeats its last token
    slots: Tensor | slice  # (c,)
    keys: int
    """How many positions of the slots they may look at, at most."""
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, positions: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask (c, 1, 1, m, keys): 0 up to the query's own position, else -inf."""
        if (window, dtype) not in self.masks:
            here = positions[self.tokens][:, None, None, :, None]
            column = torch.arange(self.keys, device=positions.device)
            hidden = column > here
            if window is not None:
                hidden |= column <= here - window
            empty = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
            self.masks[window, dtype] = empty.masked_fill_(hidden, -torch.inf)
        return self.masks[window, dtype]


@dataclass
class FlatBatch:
    """One forward pass: decoding tokens first, segments behind them."""

    cache: SlotCache
    ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,)
    blocks: list[Block]
    write_tokens: Tensor | None
    """(writes,) into the flat batch, as a shared prompt is written many times; None: each once."""
    write_slots: Tensor  # (writes,)
    write_positions: Tensor  # (writes,)


def flat_batch(
    cache: SlotCache, last: Tensor, lengths: Tensor, longest: int, segments: list[Segment]
) -> FlatBatch:
    """Lay out a forward pass.

    Args:
        cache: with room for all that is written.
        last: (n,) the token that each of the slots 0..n-1 decodes; n may be 0.
        lengths: (n,) its position.
        longest: the largest of lengths, plus one.
        segments: what is read besides; a slot that decodes may have one, at positions before its
            decoding token.
    """
    n, device = last.shape[0], last.device
    tokens = torch.arange(n, device=device)
    blocks = [Block(tokens[:, None], slice(0, n), cache.width(longest))] if n else []
    if not segments:
        return FlatBatch(cache, last, lengths, blocks, None, tokens, lengths)
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    writes: list[Tensor] = []
    offset, offsets = n, []
    for s in segments:  # on the host, and carried over as a whole
        size = len(s.ids)
        ids.append(torch.tensor(s.ids))
        positions.append(torch.arange(s.start, s.start + size))
        flat = torch.arange(offset, offset + size).repeat(len(s.slots))
        slots = torch.tensor(s.slots).repeat_interleave(size)
        writes.append(torch.stack((flat, slots, positions[-1].repeat(len(s.slots)))))
        offsets.append(offset)
        offset += size
    blocks += _segment_blocks(segments, offsets, device)
    read = torch.stack((torch.cat(ids), torch.cat(positions))).to(device)
    decoded = torch.stack((tokens, tokens, lengths))
    write = torch.cat((decoded, torch.cat(writes, 1).to(device)), 1)
    return FlatBatch(
        cache, torch.cat((last, read[0])), torch.cat((lengths, read[1])), blocks, *write
    )


def _segment_blocks(
    segments: list[Segment], offsets: list[int], device: torch.device
) -> list[Block]:
    """Group the pieces of the segments so that little is padded and the scores stay small."""
    pieces = sorted(  # (queries, keys, slot, first token)
        (
            min(_MAX_QUERIES, len(s.ids) - a),
            s.start + min(a + _MAX_QUERIES, len(s.ids)),
            s.slots[0],
            o + a,
        )
        for s, o in zip(segments, offsets, strict=True)
        for a in range(0, len(s.ids), _MAX_QUERIES)
    )
    groups: list[list[tuple[int, int, int, int]]] = []
    widest = 0
    for piece in reversed(pieces):
        fits = groups and 2 * piece[0] > groups[-1][0][0]
        widest = max(widest, piece[1]) if fits else piece[1]
        if fits and (len(groups[-1]) + 1) * groups[-1][0][0] * widest <= _MAX_SCORES:
            groups[-1].append(piece)
        else:
            groups.append([piece])
            widest = piece[1]
    return [_segment_block(group, device) for group in groups]


def _segment_block(group: list[tuple[int, int, int, int]], device: torch.device) -> Block:
    queries, _, slots, first = torch.tensor(group, device=device).unbind(1)
    step = torch.arange(group[0][0], device=device)
    tokens = first[:, None] + torch.minimum(step, queries[:, None] - 1)
    return Block(tokens, slots, max(piece[1] for piece in group))


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    flat: FlatBatch | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Write the batch's keys and values to the cache, then attend; the transformers interface.

    Args:
        module: the attention layer, for its layer_idx.
        query: (1, H, tokens, D).
        key: (1, Hk, tokens, D).
        value: (1, Hk, tokens, Dv).
        attention_mask: None; the batch says who sees whom.
        scaling: of the scores; D ** -0.5 when None.
        dropout: 0.
        sliding_window: keys a query sees, itself included; None for all.
        softcap: scores are bent to stay within it (Gemma 2).
        flat: the batch.
        kwargs: what else the model hands over; anything unknown that is set is refused.

    Returns:
        (1, tokens, H, Dv) and None.

    Raises:
        NotImplementedError: the model asks for something that would be left out.
    """
    instead = "use ReferenceEngine for this model"
    refuse_unknown("the cached engine", module, attention_mask, flat, kwargs, instead)
    assert flat is not None
    k, v = key[0].transpose(0, 1), value[0].transpose(0, 1)  # (tokens, Hk, D)
    keys, values = flat.cache.layer(int(getattr(module, "layer_idx", 0)), k, v)
    new_k, new_v = (
        (k, v) if flat.write_tokens is None else (k[flat.write_tokens], v[flat.write_tokens])
    )
    keys[flat.write_slots, :, :, flat.write_positions] = new_k
    values[flat.write_slots, :, flat.write_positions] = new_v
    dtype = query.dtype if softcap is None else torch.float32  # of the scores
    q = (query[0] * (query.shape[3] ** -0.5 if scaling is None else scaling)).transpose(0, 1)
    if flat.write_tokens is None:  # only decoding tokens
        (block,) = flat.blocks
        mask = block.mask(flat.positions, sliding_window, dtype)
        return _attend(q[:, None], keys, values, block, mask, softcap)[:, 0][None], None
    out = v.new_empty(*q.shape[:2], v.shape[2])  # (tokens, H, Dv)
    for block in flat.blocks:
        mask = block.mask(flat.positions, sliding_window, dtype)
        if isinstance(block.slots, slice):  # the decoding tokens, in order
            out[block.slots] = _attend(q[block.slots, None], keys, values, block, mask, softcap)[
                :, 0
            ]
        else:
            out[block.tokens] = _attend(q[block.tokens], keys, values, block, mask, softcap)
    return out[None], None


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, block: Block, mask: Tensor, softcap: float | None
) -> Tensor:
    """Attention (c, m, H, Dv) of scaled queries (c, m, H, D) over their slots.

    The query heads that share a key head are folded into the queries, so that keys and values are
    read once and never repeated.
    """
    rows, size, heads, dim = q.shape
    groups, width = keys.shape[1], values.shape[3]
    folded = q.view(rows, size, groups, -1, dim).permute(0, 2, 3, 1, 4)  # (c, Hk, g, m, D)
    k, v = keys[block.slots, :, :, : block.keys], values[block.slots, :, : block.keys]
    scores = folded.reshape(rows, groups, -1, dim) @ k
    scores = scores.view(rows, groups, -1, size, block.keys)
    if softcap is not None:
        scores = (scores.float() / softcap).tanh() * softcap
    scores += mask  # exact in any dtype; the softmax computes in float32
    weights = scores.softmax(-1).to(v.dtype).view(rows, groups, -1, block.keys)
    mixed = (weights @ v).to(v.dtype).view(rows, groups, -1, size, width)
    return mixed.permute(0, 3, 1, 2, 4).reshape(rows, size, heads, width)


AttentionInterface.register(NAME, slot_attention)


@contextmanager
def slots_enabled(model: nn.Module) -> Iterator[None]:
    """Let the model attend over slots inside; its own attention is put back behind."""
    with attention_replaced(model, NAME):
        yield
