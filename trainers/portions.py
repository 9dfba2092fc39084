"""Portions: the rollouts that go through the model in one pass, as many as fit in memory.

Eight rollouts of 900 tokens make two portions of four where 4096 tokens fit. Portions change time
and memory, never the gradient: a loss is a sum over tokens, and a sum may be split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict

import torch
from torch import Tensor

from research_rl.trainers.algorithms import Batch

Piece = list[int]
"""Rows that stay together."""


class Cost(ABC):
    """What the rows of a batch cost in one forward pass; a subclass says which tokens are read.

    Args:
        batch: the rollouts.
    """

    families: list[list[int]]
    """Rows that cost less together than apart, the longest first."""

    @abstractmethod
    def __init__(self, batch: Batch) -> None: ...

    @abstractmethod
    def tokens(self, pieces: list[Piece]) -> int:
        """Return the tokens that a pass over the pieces reads."""

    def size(self, pieces: list[Piece]) -> int:
        """Return what the pieces are compared by: the largest come first."""
        return self.tokens(pieces)


class PackedCost(Cost):
    """Without padding; rollouts of a question share its prompt, which each piece reads once."""

    def __init__(self, batch: Batch) -> None:
        written = batch.loss_mask.cpu()
        columns = torch.arange(written.shape[1]) + 1
        first = torch.where(written, columns, written.shape[1] + 1).amin(1)
        last = torch.where(written, columns, 0).amax(1)
        self._prompts: list[int] = torch.where(last > 0, first, 0).tolist()
        self._responses: list[int] = (last - first).clamp(min=0).tolist()
        groups = defaultdict[int, list[int]](list)
        for row, group in enumerate(batch.groups.tolist()):
            groups[group].append(row)
        longest = lambda row: (-self._responses[row], row)  # noqa: E731
        self.families = [sorted(rows, key=longest) for rows in groups.values()]

    def tokens(self, pieces: list[Piece]) -> int:
        """Return the prompt of each piece and the responses of its rows, summed."""
        return sum(self._prompts[p[0]] + sum(self._responses[row] for row in p) for p in pieces)


class PaddedCost(Cost):
    """With padding: each row is as long as the longest, so rows of like length go together."""

    def __init__(self, batch: Batch) -> None:
        self._lengths: list[int] = batch.lengths.tolist()
        self.families = [sorted(range(len(batch)), key=lambda row: (-self._lengths[row], row))]

    def tokens(self, pieces: list[Piece]) -> int:
        """Return rows times columns."""
        return sum(map(len, pieces)) * self.size(pieces)

    def size(self, pieces: list[Piece]) -> int:
        """Return the columns, with whose square the memory of attention grows."""
        return max(self._lengths[row] for piece in pieces for row in piece)


def portions(
    batch: Batch, cost: type[Cost], rows: int | None = None, tokens: int | None = None
) -> list[Tensor]:
    """Deal the rows of a batch into portions that fit.

    Each family of rows is cut into pieces that fit, its longest row first. Then the pieces, the
    largest first, go into the first portion that has room for them. The largest portion comes
    first: if memory does not suffice, the first pass says so.

    Args:
        batch: the rollouts.
        cost: what they cost together.
        rows: at most this many in a portion; None is no limit.
        tokens: at most this many tokens; a row that is longer stands alone. None is no limit.

    Returns:
        The row indices of each portion; every row is in one.
    """
    price = cost(batch)
    most_rows, most_tokens = rows or len(batch), tokens or 1 << 62

    def fits(pieces: list[Piece]) -> bool:
        return sum(map(len, pieces)) <= most_rows and price.tokens(pieces) <= most_tokens

    pieces: list[Piece] = []
    for family in price.families:
        piece: Piece = []
        for row in family:
            if not piece or not fits([[*piece, row]]):
                pieces.append(piece := [])
            piece.append(row)
    dealt: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: (-price.size([piece]), piece)):
        portion = next((held for held in dealt if fits([*held, piece])), None)
        if portion is None:
            dealt.append(portion := [])
        portion.append(piece)
    dealt.sort(key=lambda held: -price.size(held))
    device = batch.input_ids.device
    return [torch.tensor([r for p in held for r in p], device=device) for held in dealt]
