"""A copy of a model to sample from: in another dtype, adapters merged, made anew for each run.

The copy lives as long as one run of an engine. Nothing of it is kept, so it can never hold weights
of before an update.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from research_rl.agents.proofs import prove_copy, prove_merge


def is_copy_needed(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether the model's weights have another dtype, or adapters beside them."""
    return any(map(_is_adapted, model.modules())) or any(
        p.dtype != dtype for p in model.parameters()
    )


class SamplingCopies:
    """Makes the copies of one engine.

    Before the first one is sampled from, and after any change of which adapters the policy has and
    which of them are on, it is compared with the policy.
    """

    def __init__(self) -> None:
        self._proved: tuple[Any, ...] | None = None

    def made(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """The model as it is now; see sampling_copy.

        Args:
            model: in evaluation mode, below the wrapper of peft.
            dtype: of the copy's weights.

        Raises:
            CopyError: the copy computes something else than the model.
        """
        adapted = {name: layer for name, layer in model.named_modules() if _is_adapted(layer)}
        layers = tuple((name, *_state_of(layer)) for name, layer in adapted.items())
        structure = (dtype, *layers)
        new = structure != self._proved
        if new and any(not (layer.merged or layer.disable_adapters) for layer in adapted.values()):
            outer = [name for name in adapted if not _is_inside(name, adapted)]
            prove_merge(model, outer, lambda: sampling_copy(model, dtype), dtype, _ELSE)
        copied = sampling_copy(model, dtype)
        if new:
            prove_copy(model, copied, "the copy to sample from", _ELSE)
            self._proved = structure
        return copied


_ELSE = "leave the engine's dtype empty, which samples from the policy itself"


def _state_of(layer: Any) -> tuple[Any, ...]:
    return tuple(layer.active_adapters), tuple(layer.merged_adapters), layer.disable_adapters


def _is_inside(name: str, names: Iterable[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in names)


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
    """The layer below its adapters, with what they add; merged in the layer's precision."""
    base = _without_adapters(copy.deepcopy(layer))
    for module in base.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, _cast(name, weight, dtype))
    return base


def _without_adapters(module: Any) -> nn.Module:
    """The module with all adapters in it merged; an adapter may be around another one.

    The parameters of a mixture of experts have one adapter each, around each other.
    """
    if _is_adapted(module):
        if not (module.merged or module.disable_adapters):
            module.merge()
        return _without_adapters(module.base_layer)
    for name, child in module.named_children():
        setattr(module, name, _without_adapters(child))
    found: nn.Module = module
    return found


def _cast(name: str, weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    if not weight.is_floating_point():
        raise ValueError(
            f"weights must be floating-point to be copied to {dtype}, got {weight.dtype} for "
            f"{name}; leave the engine's dtype empty for a quantized model"
        )
    return nn.Parameter(weight.detach().to(dtype), requires_grad=False)
