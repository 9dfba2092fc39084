"""What the ranks of a data-parallel run tell each other; a single process hears only itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor

Item = TypeVar("Item")


def mean_over_ranks(trainer: pl.Trainer, value: Tensor) -> Tensor:
    """Return the mean of a tensor over the ranks; every rank must ask."""
    reduced: Any = trainer.strategy.reduce(value.detach().clone(), reduce_op="mean")
    mean: Tensor = reduced
    return mean


def means_over_ranks(trainer: pl.Trainer, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean of each scalar over the ranks, in one exchange; all have the same names."""
    names = sorted(values)
    means = mean_over_ranks(trainer, torch.stack([values[name].detach().float() for name in names]))
    return dict(zip(names, means.unbind(), strict=True))


def gather(items: list[Item]) -> list[Item]:
    """Return the items of all ranks, in the order of the ranks; every rank must ask."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, items)
    return [item for share in shares for item in share]


def without_sync(trainer: pl.Trainer, wanted: bool) -> AbstractContextManager[None]:
    """Return a block in which backward leaves gradients on their rank, if that is wanted."""
    block = getattr(trainer.strategy, "block_backward_sync", None)
    if not wanted or block is None:
        return nullcontext()
    context: AbstractContextManager[None] = block()
    return context
