"""The layout of packed rollouts: where each token stands, and which queries attend together.

With a prompt P and two responses A and B the row is ``P A B``: A and B both see P, and B does not
see A. Nothing is padded but the queries of pieces that attend together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from research_rl.agents.kernels.hf_attention import Seen

_QUERIES = (128, 256)
"""Queries of one segment that attend together; the keys behind them are not looked at. More in a
long segment, since each piece has a copy of the keys that it sees."""
_PIECES = 16
"""Of a segment, before its pieces become longer."""
_MAX_SCORES = 1 << 21
"""Scores (rows x queries x keys) of one head in one block of several segments."""
_WASTE = (16, 1 << 13)
"""A block may be filled up by this part of its scores, and by what another block would cost."""
_NEVER = 1 << 60
"""Position of a key that stands for nothing."""


@dataclass(frozen=True)
class _Segment:
    """Tokens that stand together in the flat batch, behind a prefix that stands elsewhere."""

    start: int
    size: int
    prefix: range


@dataclass
class _Block:
    """Queries that attend together: c rows of m queries over n keys; short rows are filled up."""

    queries: Tensor  # (c, m) into the flat batch
    keys: Tensor  # (c, n) into the flat batch
    query_positions: Tensor  # (c, m)
    key_positions: Tensor  # (c, n), _NEVER where a key only fills up
    masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask (c, 1, m, n): 0 up to the query's own position, else -inf."""
        known = self.masks.get((window, dtype))
        if known is None:
            here, there = self.query_positions[:, None, :, None], self.key_positions[:, None, None]
            hidden = there > here
            if window is not None:
                hidden |= there <= here - window
            known = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            known.masked_fill_(hidden, -torch.inf)
            self.masks[window, dtype] = known
        return known


@dataclass
class Packed:
    """Rows of a padded batch laid flat, and where each target token's prediction stands.

    N targets, in the order of their rows and columns.
    """

    ids: Tensor  # (tokens,)
    positions: Tensor  # (tokens,) in their own sequence
    sources: Tensor  # (N,) into the flat batch: whose hidden state predicts the target
    targets: Tensor  # (N,) token ids
    rows: Tensor  # (N,)
    columns: Tensor  # (N,) of a (B, T) tensor
    shape: tuple[int, int]
    """(B, T) of the padded batch."""
    blocks: list[_Block]
    queries: Tensor  # all blocks' queries, flattened
    keys: Tensor  # all blocks' keys, flattened
    places: Tensor  # (tokens,) into queries: where each token's attention is found
    seen: list[Seen] | None = None
    """Each call of an attention is added to it where it is a list."""

    def padded(self, values: Tensor) -> Tensor:
        """Return (B, T, ...) with the targets' values (N, ...) and 0 elsewhere, with gradient."""
        blank = values.new_zeros(*self.shape, *values.shape[1:])
        return blank.index_put((self.rows, self.columns), values)


def pack(input_ids: Tensor, wanted: Tensor) -> Packed:
    """Lay the rows of a batch flat; equal prompts stand once.

    A row's prompt is what stands before its first target; what stands behind its last one, the
    last target included, is left out, and so is a row without targets.

    Args:
        input_ids: (B, L), padded on the right.
        wanted: (B, T) bool; True at t asks for a prediction of ``input_ids[:, t + 1]``.
    """
    device = input_ids.device
    ids, mask = input_ids.cpu(), wanted.cpu()
    found, columns = mask.nonzero(as_tuple=True)
    rows = found.tolist()
    bounds: dict[int, tuple[int, int]] = {}  # row: first and last column with a target
    for row, column in zip(rows, columns.tolist(), strict=True):
        bounds[row] = (bounds.get(row, (column, column))[0], column)
    layout = _layout(ids, bounds or {0: (0, 0)})
    offset = torch.zeros(len(ids), 2, dtype=torch.long)  # shift of prompt and of response columns
    begin = torch.zeros(len(ids), dtype=torch.long)  # first column of the response
    for row, (prompt, response, size) in layout.where.items():
        offset[row] = torch.tensor([prompt, response - size])
        begin[row] = size
    sources = columns + offset[found, (columns >= begin[found]).long()]
    blocks = _blocks(layout.segments, layout.positions)
    flat_ids, positions = torch.cat(layout.ids), torch.cat(layout.positions)
    queries = torch.cat([block.queries.flatten() for block in blocks])
    places = torch.empty(len(flat_ids), dtype=torch.long)
    places[queries] = torch.arange(len(queries))
    for block in blocks:
        for name in ("queries", "keys", "query_positions", "key_positions"):
            setattr(block, name, getattr(block, name).to(device))
    return Packed(
        ids=flat_ids.to(device),
        positions=positions.to(device),
        sources=sources.to(device),
        targets=input_ids[:, 1:][wanted],
        rows=found.to(device),
        columns=columns.to(device),
        shape=(wanted.shape[0], wanted.shape[1]),
        blocks=blocks,
        queries=queries.to(device),
        keys=torch.cat([block.keys.flatten() for block in blocks]),
        places=places.to(device),
    )


@dataclass
class _Layout:
    ids: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    segments: list[_Segment] = field(default_factory=list)
    where: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Row: begin of its prompt and of its response in the flat batch, size of its prompt."""
    tokens: int = 0

    def add(self, ids: Tensor, position: int, prefix: range) -> range:
        """Append tokens at a position of their sequence; return where they stand."""
        here = range(self.tokens, self.tokens + len(ids))
        if len(ids):
            self.ids.append(ids)
            self.positions.append(torch.arange(position, position + len(ids)))
            self.segments.append(_Segment(here.start, len(ids), prefix))
            self.tokens = here.stop
        return here


def _layout(ids: Tensor, bounds: dict[int, tuple[int, int]]) -> _Layout:
    layout, prompts = _Layout(), dict[tuple[int, ...], range]()
    for row, (first, last) in bounds.items():
        size = first + 1
        key = tuple(ids[row, :size].tolist())
        if key not in prompts:
            prompts[key] = layout.add(ids[row, :size], 0, range(0))
        prompt = prompts[key]
        response = layout.add(ids[row, size : last + 1], size, prompt)
        layout.where[row] = (prompt.start, response.start, size)
    return layout


def _blocks(segments: Sequence[_Segment], positions: Sequence[Tensor]) -> list[_Block]:
    """Group pieces of the segments so that little is filled up and the scores stay small."""
    groups: list[list[_Piece]] = []
    for piece in sorted(
        (piece for i, s in enumerate(segments) for piece in _pieces(i, s)),
        key=lambda p: (p.seen, p.size, p.segment),
        reverse=True,
    ):
        if groups and _fits([*groups[-1], piece]):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    flat = torch.cat([*positions])
    return [_block(group, segments, flat) for group in groups]


class _Piece(NamedTuple):
    """Queries of a segment that attend together, and how many keys the last of them sees."""

    size: int
    seen: int
    segment: int
    begin: int
    """Its first token, in the segment."""


def piece_size(tokens: int) -> int:
    """Return how many queries attend together, at most, in a segment of so many tokens."""
    few, many = _QUERIES
    return min(many, max(few, tokens // _PIECES))


def _pieces(number: int, segment: _Segment) -> Iterator[_Piece]:
    """Cut a segment evenly."""
    count = -(-segment.size // piece_size(segment.size))
    bounds = [segment.size * i // count for i in range(count + 1)]
    for begin, end in pairwise(bounds):
        yield _Piece(end - begin, len(segment.prefix) + end, number, begin)


def _fits(group: list[_Piece]) -> bool:
    """Whether the pieces are so much alike that one block of them wastes little."""
    whole = len(group) * max(p.size for p in group) * max(p.seen for p in group)
    own = sum(p.size * p.seen for p in group)
    part, some = _WASTE
    return whole <= _MAX_SCORES and whole - own <= own // part + some


def _block(group: list[_Piece], segments: Sequence[_Segment], positions: Tensor) -> _Block:
    size, width = max(p.size for p in group), max(p.seen for p in group)
    queries = torch.empty(len(group), size, dtype=torch.long)
    keys = torch.zeros(len(group), width, dtype=torch.long)
    key_positions = torch.full((len(group), width), _NEVER)
    for row, piece in enumerate(group):
        segment = segments[piece.segment]
        begin = segment.start + piece.begin
        end = begin + piece.size
        queries[row] = torch.arange(begin, begin + size).clamp(max=end - 1)
        prefix = torch.arange(segment.prefix.start, segment.prefix.stop)
        keys[row, : piece.seen] = torch.cat((prefix, torch.arange(segment.start, end)))
        keys[row, piece.seen :] = begin
        key_positions[row, : piece.seen] = positions[keys[row, : piece.seen]]
    return _Block(queries, keys, positions[queries], key_positions)
