"""Exchange among the ranks of a data-parallel run; in a single process every value is its own mean.

A rank is one process of the run. Each of these functions is a collective: if one rank does not call
it, the others wait for that rank until the time-out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Item = TypeVar("Item")


def mean_over_ranks(trainer: pl.Trainer, value: Tensor) -> Tensor:
    """Return the mean of a tensor over the ranks; every rank must call it."""
    reduced: Any = trainer.strategy.reduce(value.detach().clone(), reduce_op="mean")
    mean: Tensor = reduced
    return mean


def means_over_ranks(trainer: pl.Trainer, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean of each scalar over the ranks, in one exchange.

    Every rank must call it with the same names.
    """
    names = sorted(values)  # ranks may have added them in another order
    means = mean_over_ranks(trainer, torch.stack([values[name].detach().float() for name in names]))
    return dict(zip(names, means.unbind(), strict=True))


def gather(items: list[Item]) -> list[Item]:
    """Return the items of all ranks, in the order of the ranks; every rank must call it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, items)
    return [item for share in shares for item in share]


def without_sync(trainer: pl.Trainer, wanted: bool) -> AbstractContextManager[None]:
    """Return a context in which backward passes do not average gradients over ranks, if wanted.

    DDP would average after every pass, though it is enough after the last one of a step.
    """
    block = getattr(trainer.strategy, "block_backward_sync", None)
    if not wanted or block is None:
        return nullcontext()
    context: AbstractContextManager[None] = block()
    return context


def most(count: int) -> int:
    """Return the largest of the ranks' counts; every rank must call it."""
    return max(gather([count]))


def is_sharded(model: nn.Module) -> bool:
    """Return whether weights of the model are divided among the ranks (FSDP2)."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients down to a norm of at most ``limit``; return the norm they had.

    The norm is that of the whole gradient. If weights are sharded, every rank must call it.
    """
    parameters = [p for p in parameters if p.grad is not None]
    shards = [p.grad for p in parameters if isinstance(p.grad, DTensor)]
    if not shards:
        return torch.nn.utils.clip_grad_norm_(parameters, limit).detach()
    plain = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    norm: Any = torch.nn.utils.get_total_norm(shards)
    whole: Tensor = norm.full_tensor()
    if plain:
        whole = torch.linalg.vector_norm(torch.stack((whole, torch.nn.utils.get_total_norm(plain))))
    factor = (limit / (whole + 1e-6)).clamp(max=1.0)  # the formula of torch's clip_grad_norm_
    for gradient in (*(shard.to_local() for shard in shards), *plain):
        gradient.mul_(factor)
    return whole.detach()


def average_gradients(trainer: pl.Trainer, parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over the ranks, for parameters outside of the strategy."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(mean_over_ranks(trainer, parameter.grad))
