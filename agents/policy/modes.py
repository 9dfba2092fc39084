"""A mode for the length of a ``with`` block: without dropout, or without the adapter.

With LoRA the reference is the policy itself, whose adapter has dropout while it is trained; scored
in training mode, the same text would have another log-prob each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode inside; afterwards every submodule has its own mode again.

    ``model.train()`` would not do afterwards: a frozen part may have been in evaluation mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def has_adapter(model: nn.Module) -> bool:
    """Return whether a model is wrapped by peft."""
    return hasattr(model, "disable_adapter") and hasattr(model, "peft_config")


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Switch off the adapter of a peft model inside; afterwards the same weights are trained again.

    peft alone would have all adapters trained afterwards, those of frozen layers too.
    """
    trained = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for weight, wanted in trained:
            if weight.requires_grad != wanted:
                weight.requires_grad_(wanted)
