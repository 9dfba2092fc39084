"""Attention for sampling: a flat batch of tokens over the slots of a cache, for any HF model.

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

from research_rl.agents.kernels.block_attention import attend
from research_rl.agents.kernels.hf_attention import Seen, flat_inputs, refuse_unknown
from research_rl.agents.kernels.kv_cache import SlotCache
from research_rl.agents.kernels.torch_internals import attention_replaced
from research_rl.agents.machine import fused_decode

SLOTS = "research_rl_slots"
"""What the model's config calls this attention."""
_MAX_QUERIES = 256
"""Queries of one segment that attend together; bounds the score matrix of a long prompt."""
_MAX_SCORES = 1 << 21
"""Scores (rows x queries x keys) of one head in one block."""


@dataclass(frozen=True)
class Span:
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
    slots: Tensor | slice  # (c,); a slice of the first slots where these tokens decode
    keys: int
    """How many positions of the slots they may look at, at most."""
    masks: dict[tuple[int | None, torch.dtype, int], Tensor] = field(default_factory=dict)
    """By window, dtype and number of key heads, 0 for all of them together."""

    def mask(self, positions: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask (c, 1, m, keys): 0 up to the query's own position, else -inf."""
        if (window, dtype, 0) not in self.masks:
            here = positions[self.tokens][:, None, :, None]
            self.masks[window, dtype, 0] = self._mask(here, window, dtype)
        return self.masks[window, dtype, 0]

    def folded_mask(
        self, positions: Tensor, window: int | None, dtype: torch.dtype, groups: int
    ) -> Tensor:
        """The mask (c * groups, 1, keys) of tokens that decode, once for each key head."""
        if (window, dtype, groups) not in self.masks:
            here = positions[self.slots].repeat_interleave(groups)[:, None, None]
            self.masks[window, dtype, groups] = self._mask(here, window, dtype)
        return self.masks[window, dtype, groups]

    def _mask(self, here: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
        column = torch.arange(self.keys, device=here.device)
        hidden = column > here
        if window is not None:
            hidden |= column <= here - window
        empty = torch.zeros(hidden.shape, dtype=dtype, device=here.device)
        return empty.masked_fill_(hidden, -torch.inf)


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
    seen: list[Seen] | None = None
    """Each call of an attention is added to it where it is a list."""


def flat_batch(
    cache: SlotCache, last: Tensor, lengths: Tensor, longest: int, segments: list[Span]
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
    blocks = [Block(tokens[:, None], slice(0, n), longest)] if n else []
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


def _segment_blocks(segments: list[Span], offsets: list[int], device: torch.device) -> list[Block]:
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
    instead = "use TurnwiseEngine for this model"
    refuse_unknown("the cached engine", module, attention_mask, flat, kwargs, instead)
    assert flat is not None
    q, k, v, scale = flat_inputs(query, key, value, scaling)
    layer = int(getattr(module, "layer_idx", 0))
    out = attend_slots(flat, layer, q, k, v, scale, sliding_window, softcap)
    return out[None], None


def attend_slots(
    flat: FlatBatch,
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Write the batch's keys and values to the cache, then attend.

    Args:
        flat: the batch.
        layer: its number.
        q: (n, H, D) of the first n tokens: all of the batch, or those that decode.
        k: (tokens, Hk, D).
        v: (tokens, Hk, Dv).
        scaling: of the scores.
        window: keys a query sees, itself included; None for all.
        softcap: scores are bent to stay within it (Gemma 2).

    Returns:
        (n, H, Dv).
    """
    out = _attended(flat, layer, q, k, v, scaling, window, softcap)
    if flat.seen is not None:
        flat.seen.append(Seen(q, k, v, out, scaling, window, softcap))
    return out


def _attended(
    flat: FlatBatch,
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    keys, values = flat.cache.layer(layer, k, v)
    new_k, new_v = (
        (k, v) if flat.write_tokens is None else (k[flat.write_tokens], v[flat.write_tokens])
    )
    keys[flat.write_slots, :, flat.write_positions] = new_k
    values[flat.write_slots, :, flat.write_positions] = new_v
    if not len(q):
        return v.new_empty(0, q.shape[1], v.shape[2])
    decoding = [block for block in flat.blocks if isinstance(block.slots, slice)]
    outs = [
        _decoded(q[block.slots], keys, values, block, flat.positions, scaling, window, softcap)
        for block in decoding
    ]
    if len(outs) == 1 and len(outs[0]) == len(q):
        return outs[0]
    out = torch.cat([*outs, v.new_empty(len(q) - sum(map(len, outs)), q.shape[1], v.shape[2])])
    for block in flat.blocks:
        if isinstance(block.slots, slice):
            continue
        mixed = attend(
            q[block.tokens].transpose(1, 2),
            keys[block.slots, :, : block.keys],
            values[block.slots, :, : block.keys],
            block.mask(flat.positions, window, q.dtype),
            scaling,
            0.0,
            softcap,
        )
        out[block.tokens] = mixed.transpose(1, 2).to(out.dtype)
    return out


def _decoded(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block: Block,
    positions: Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention (n, H, Dv) of one query (n, H, D) a slot, slots 0..n-1.

    The query heads that share a key head are folded into the queries, so that keys and values are
    read once and never repeated. Some CPUs are quicker with a fused kernel, see ``fused_decode``.
    """
    rows, heads, dim = q.shape
    groups, width = keys.shape[1], values.shape[3]
    dtype = q.dtype if softcap is None else torch.float32
    mask = block.folded_mask(positions, window, dtype, groups)
    k, v = keys[:rows, :, : block.keys], values[:rows, :, : block.keys]
    low = q.dtype == v.dtype == torch.bfloat16 and q.device.type == "cpu"
    if low and softcap is None and fused_decode(heads // groups):
        once = mask.view(rows, groups, 1, -1)[:, :1]
        return attend(q[:, :, None], k, v, once, scaling, 0.0, None)[:, :, 0]
    folded = q.reshape(rows * groups, heads // groups, dim)
    k, v = k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)
    if softcap is None:  # the mask is exact in any dtype; the softmax computes in float32
        scores = torch.baddbmm(mask, folded, k, alpha=scaling)
    else:
        scores = (folded * scaling @ k).float().div_(softcap).tanh_().mul_(softcap).add_(mask)
    return (scores.softmax(-1).to(v.dtype) @ v).view(rows, heads, width)


AttentionInterface.register(SLOTS, slot_attention)


@contextmanager
def slots_enabled(model: nn.Module) -> Iterator[None]:
    """In this block the model attends over slots; then its own attention is back."""
    with attention_replaced(model, SLOTS):
        yield
