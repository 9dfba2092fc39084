"""Copies of float32 weights in bfloat16, with which a model computes; made once for each update.

Autocast casts every weight anew in every forward pass. Here a low-precision copy of each weight
stands in for it while the model computes, and is refreshed when the optimizer has moved the weight.
Gradients arrive at the float32 weights, in float32, through autograd: data-parallel training,
clipping and checkpoints see nothing of the copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from research_rl.agents.kernels import parameters_of


class WorkingWeights:
    """Low-precision copies of a model's weights.

    Args:
        model: float32 weights; they stay its parameters.
        dtype: of the copies.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._copies: dict[nn.Parameter, Tensor] = {}
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights again; call it when the optimizer has moved them."""
        for weight in self._model.parameters():
            if not weight.is_floating_point():
                continue
            copy = self._copies.get(weight)
            if copy is None or copy.device != weight.device:
                self._copies[weight] = weight.detach().to(self._dtype)
            elif weight.requires_grad:
                copy.copy_(weight)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the model compute with the copies inside; backward passes belong inside too."""
        standing: dict[nn.Parameter, Any] = {}
        linked: Any = _StandIn.apply
        for weight, copy in self._copies.items():
            learns = weight.requires_grad and torch.is_grad_enabled()
            standing[weight] = linked(weight, copy) if learns else copy
        swapped: list[tuple[dict[str, Any], str, nn.Parameter]] = []
        try:
            for module in self._model.modules():
                slots = parameters_of(module)
                for name, weight in list(slots.items()):
                    if weight is not None and weight in standing:
                        slots[name] = standing[weight]
                        swapped.append((slots, name, weight))
            yield
        finally:
            for slots, name, weight in swapped:
                slots[name] = weight


class _StandIn(torch.autograd.Function):
    """The copy of a weight, whose gradient is the weight's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        """Return the copy."""
        ctx.dtype = weight.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Hand the gradient on in the weight's own dtype."""
        return gradients[0].to(ctx.dtype), None
