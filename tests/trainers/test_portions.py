"""Portions hold each row once, fit where a row alone fits, and come largest first."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from research_rl.agents.kernels.packing import pack
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.portions import Cost, PackedCost, PaddedCost, portions

LIMITS = [(None, None), (2, None), (None, 25), (2, 18), (1, None), (8, 10), (1, 1)]


def batch(seed: int = 3, size: int = 9, groups: int = 3) -> Batch:
    """Rollouts of random lengths; some wrote nothing that is learned from."""
    draw = random.Random(seed)
    prompts = [draw.randint(1, 9) for _ in range(groups)]
    rows: list[tuple[int, list[bool]]] = []
    for number in range(size):
        group = number % groups
        written = [draw.random() < 0.6 for _ in range(draw.randint(1, 14))]
        written = [number % 7 != 6, *(w and number % 7 != 6 for w in written)]
        rows.append((group, [False] * (prompts[group] - 1) + written))
    width = max(len(mask) for _, mask in rows)
    ids = torch.zeros(size, width + 1, dtype=torch.long)
    attention = torch.zeros(size, width + 1, dtype=torch.bool)
    loss = torch.zeros(size, width, dtype=torch.bool)
    for number, (group, mask) in enumerate(rows):
        attention[number, : len(mask) + 1] = True
        loss[number, : len(mask)] = torch.tensor(mask)
        ids[number] = torch.arange(1, width + 2) + 100 * (number + 1)
        ids[number, : prompts[group]] = torch.arange(prompts[group]) + 10 * (group + 1)
    numbers = torch.tensor([group for group, _ in rows])
    blank = torch.zeros(size, width)
    return Batch(ids, attention, loss, blank, torch.zeros(size), numbers)


def read(made: Batch, cost: type[Cost], index: Tensor) -> int:
    """Tokens that the model really reads of a portion."""
    rows = made[index].trim()
    if cost is PaddedCost:
        return rows.input_ids.numel()
    return len(pack(rows.input_ids, rows.loss_mask).ids)


@pytest.mark.parametrize("cost", [PackedCost, PaddedCost])
@pytest.mark.parametrize(("rows", "tokens"), LIMITS)
def test_portions_hold_each_row_once_and_fit(
    cost: type[Cost], rows: int | None, tokens: int | None
) -> None:
    for seed in range(20):
        made = batch(seed)
        parts = portions(made, cost, rows, tokens)
        assert sorted(torch.cat(parts).tolist()) == list(range(len(made)))
        assert rows is None or all(len(index) <= rows for index in parts)
        assert tokens is None or all(
            len(index) == 1 or read(made, cost, index) <= tokens for index in parts
        )


@pytest.mark.parametrize("cost", [PackedCost, PaddedCost])
@pytest.mark.parametrize(("rows", "tokens"), LIMITS)
def test_the_largest_comes_first(cost: type[Cost], rows: int | None, tokens: int | None) -> None:
    made = batch()
    parts = portions(made, cost, rows, tokens)
    if cost is PaddedCost:
        sizes = [int(made[index].lengths.max()) for index in parts]
    else:
        sizes = [read(made, cost, index) for index in parts]
    assert sizes == sorted(sizes, reverse=True)


def test_what_packed_rows_cost_is_what_is_read() -> None:
    for seed in range(20):
        made = batch(seed)
        price = PackedCost(made)
        for family in price.families:
            index = torch.tensor(family)
            # packing reads one token where there is nothing to learn from
            assert max(1, price.tokens([family])) == read(made, PackedCost, index)


def test_groups_stay_together_where_they_fit() -> None:
    made = batch()
    price = PackedCost(made)
    largest = max(price.tokens([family]) for family in price.families)
    parts = [set(index.tolist()) for index in portions(made, PackedCost, None, largest)]
    for family in price.families:
        assert any(set(family) <= part for part in parts)


def test_rows_of_like_length_are_padded_together() -> None:
    made = batch(size=12)
    lengths = made.lengths.tolist()
    parts = [[lengths[row] for row in index] for index in portions(made, PaddedCost, 4)]
    assert [length for part in parts for length in part] == sorted(lengths, reverse=True)
