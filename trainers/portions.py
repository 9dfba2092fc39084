"""Portions: which rollouts go through the model together, as many as fit in memory.

Eight rollouts of 900 tokens are two portions of four if 4096 tokens are allowed. Portions change
time and memory, never the gradient: the loss is a sum over tokens, and a sum can be split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict

import torch
from torch import Tensor

from research_rl.trainers.algorithms import Batch

_Piece = list[int]
"""Row numbers that stay together."""


class Cost(ABC):
    """What rows of a batch cost in one forward pass; a subclass knows which tokens are read.

    Args:
        batch: the rollouts.
    """

    families: list[list[int]]
    """Rows that cost less in one pass than in several; in each family the longest row first."""

    @abstractmethod
    def __init__(self, batch: Batch) -> None: ...

    @abstractmethod
    def tokens(self, pieces: list[_Piece]) -> int:
        """Return how many tokens a pass over the pieces reads."""

    def size(self, pieces: list[_Piece]) -> int:
        """Return the number by which pieces and portions are sorted, largest first."""
        return self.tokens(pieces)


class PackedCost(Cost):
    """Without padding. Rollouts of a question share its prompt, which is read once in a piece."""

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

    def tokens(self, pieces: list[_Piece]) -> int:
        """Return the sum of each piece's prompt and its rows' responses.

        What stands behind the last token that the policy wrote is not read.
        """
        return sum(self._prompts[p[0]] + sum(self._responses[row] for row in p) for p in pieces)


class PaddedCost(Cost):
    """With padding: every row is as long as the longest, so all rows are one family by length."""

    def __init__(self, batch: Batch) -> None:
        self._lengths: list[int] = batch.lengths.tolist()
        self.families = [sorted(range(len(batch)), key=lambda row: (-self._lengths[row], row))]

    def tokens(self, pieces: list[_Piece]) -> int:
        """Return rows times columns."""
        return sum(map(len, pieces)) * self.size(pieces)

    def size(self, pieces: list[_Piece]) -> int:
        """Return columns: the memory of attention grows with their square."""
        return max(self._lengths[row] for piece in pieces for row in piece)


def portions(
    batch: Batch, cost: type[Cost], rows: int | None = None, tokens: int | None = None
) -> list[Tensor]:
    """Deal the rows of a batch into portions that fit.

    First each family of rows is cut into pieces: its rows, longest first, join the current piece
    as long as that fits. Then each piece, largest first, goes into the first portion in which it
    fits. The largest portion is returned first, so that a lack of memory shows in the first pass.

    Args:
        batch: the rollouts.
        cost: what rows cost together, PackedCost or PaddedCost.
        rows: largest number of rows in a portion; None is no limit.
        tokens: largest number of tokens in a portion; None is no limit. A row that is longer has
            a portion of its own.

    Returns:
        The row indices of each portion; every row is in exactly one.
    """
    price = cost(batch)
    most_rows, most_tokens = rows or len(batch), tokens or 1 << 62

    def fits(pieces: list[_Piece]) -> bool:
        return sum(map(len, pieces)) <= most_rows and price.tokens(pieces) <= most_tokens

    pieces: list[_Piece] = []
    for family in price.families:
        piece: _Piece = []
        for row in family:
            if not piece or not fits([[*piece, row]]):
                pieces.append(piece := [])
            piece.append(row)
    dealt: list[list[_Piece]] = []
    for piece in sorted(pieces, key=lambda piece: (-price.size([piece]), piece)):
        portion = next((held for held in dealt if fits([*held, piece])), None)
        if portion is None:
            dealt.append(portion := [])
        portion.append(piece)
    dealt.sort(key=lambda held: -price.size(held))
    device = batch.input_ids.device
    return [torch.tensor([r for p in held for r in p], device=device) for held in dealt]
