"""What the token mixers of a model give, written down as it is called.

A mixer is what lets a token read others: attention, a convolution, a recurrent state. Where a
model's weights are small, what a mixer adds is little beside what it is added to, and logits tell
nothing of a fault in it. So its own output is compared, relative to itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_NAMES = ("attn", "attention", "mixer", "mamba", "ssm", "conv", "recurrent", "temporal", "time_mix")
"""What the children of a layer that mix tokens are called, or begin or end with."""
_SMALLEST = 1e-12


def mixers_of(model: nn.Module) -> list[nn.Module]:
    """Return the mixers in the layers of a model, in order; none where no name tells one."""
    layers = [
        layer for held in model.modules() if isinstance(held, nn.ModuleList) for layer in held
    ]
    return [
        child
        for layer in layers
        for name, child in layer.named_children()
        if any(part in name.casefold() for part in _NAMES) and "norm" not in name.casefold()
    ]


@contextmanager
def mixers_noted(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the list holds what each mixer gave in the last call: (B, T, D), in order."""
    found: dict[int, Tensor] = {}
    noted: list[Tensor] = []

    def note(number: int) -> Any:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            first = out[0] if isinstance(out, tuple) else out
            if isinstance(first, Tensor) and first.ndim == 3:
                found[number] = first.detach().float()
                noted[:] = [found[i] for i in sorted(found)]

        return hook

    handles = [m.register_forward_hook(note(i)) for i, m in enumerate(mixers_of(model))]
    try:
        yield noted
    finally:
        for handle in handles:
            handle.remove()


def mixer_gap(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return how far the mixers' outputs (D,) for a token are apart at most, relative to theirs."""
    gaps = [
        float((a - b).norm() / b.norm().clamp(min=_SMALLEST))
        for a, b in zip(ours, theirs, strict=True)
        if float(b.norm()) > 0
    ]
    return max(gaps, default=0.0)
