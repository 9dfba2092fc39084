"""A copy of a model to sample from: in another dtype, adapters merged, made anew for each run.

The copy lives as long as one run of an engine. Nothing of it is kept, so it can never hold weights
of before an update.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def is_copy_needed(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether the model's weights have another dtype, or adapters beside them."""
    return any(map(_is_adapted, model.modules())) or any(
        p.dtype != dtype for p in model.parameters()
    )


@torch.no_grad()
def sampling_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with its weights in another dtype and its adapters merged into them.

    A weight that has the dtype already is shared, not copied. Tied weights stay tied; buffers
    (the frequencies of rotary embeddings) keep their precision.

    Args:
        model: a causal language model, below the wrapper of peft.
        dtype: of the copy's weights.

    Raises:
        ValueError: the weights are quantized.
    """
    memo: dict[int, Any] = {}
    adapted: set[int] = set()
    for module in model.modules():
        if _is_adapted(module) and id(module) not in adapted:
            adapted.update(map(id, module.modules()))
            memo[id(module)] = _merged(module, dtype)
    for module in model.modules():
        if id(module) not in adapted:
            for name, weight in module.named_parameters(recurse=False):
                memo[id(weight)] = _cast(name, weight, dtype)
    return copy.deepcopy(model, memo).eval()


def _is_adapted(module: nn.Module) -> bool:
    """Whether peft has put an adapter around this layer."""
    return hasattr(module, "get_base_layer") and hasattr(module, "merge")


def _merged(layer: Any, dtype: torch.dtype) -> nn.Module:
    """The layer below the adapter, with what the adapter adds; merged in the layer's precision."""
    twin = copy.deepcopy(layer)
    if not (twin.merged or twin.disable_adapters):
        twin.merge()
    base: nn.Module = twin.get_base_layer()
    for module in base.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, _cast(name, weight, dtype))
    return base


def _cast(name: str, weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    if not weight.is_floating_point():
        raise ValueError(
            f"weights must be floating-point to be copied to {dtype}, got {weight.dtype} for "
            f"{name}; leave the engine's dtype empty for a quantized model"
        )
    return nn.Parameter(weight.detach().to(dtype), requires_grad=False)
