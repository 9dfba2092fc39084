"""Linear layers for sampling on a CPU: bfloat16 weights, rearranged once for its matrix unit.

A product of few rows spends most of its time rearranging the weight. Here that is done once. The
results are the same, bit by bit where rows are few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from research_rl.agents.kernels.torch_internals import (
    UNCHANGED,
    can_pack,
    is_untouched,
    packed_product,
    packed_weight,
)


class PackedLinear(nn.Module):
    """A linear layer without gradient; its weight cannot be read back.

    Args:
        layer: whose weight and bias are taken over.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._bias = None if layer.bias is None else layer.bias.detach()
        self._weight = packed_weight(layer.weight.detach())
        self._product = packed_product()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) to (..., out_features)."""
        return self._product(x, self._weight, self._bias, *UNCHANGED)


def pack_linears(model: nn.Module) -> None:
    """Replace the bfloat16 linear layers of a model on a CPU, where that is possible.

    Only layers of the plain class without hooks are. A weight that is tied to an embedding is kept
    there as well, which costs its size once more.

    Args:
        model: changed in place; it must not be trained.
    """
    if not can_pack():
        return
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear and _is_fit(layer):
                setattr(module, name, PackedLinear(layer))


def joined(layers: Sequence[nn.Linear]) -> list[Callable[[Tensor], Tensor]]:
    """One product for several linear layers that meet the same input, packed where possible.

    Args:
        layers: whose outputs stand side by side in the one's.
    """
    layer = layers[0] if len(layers) == 1 else _side_by_side(layers)
    packed = can_pack() and _is_fit(layer)
    return [PackedLinear(layer).forward if packed else layer.forward]


@torch.no_grad()
def _side_by_side(layers: Sequence[nn.Linear]) -> nn.Linear:
    weight = torch.cat([layer.weight for layer in layers])
    biased = any(layer.bias is not None for layer in layers)
    one = nn.Linear(weight.shape[1], weight.shape[0], bias=biased, device="meta")
    one.weight = nn.Parameter(weight, requires_grad=False)
    if biased:
        biases = [
            weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
            for layer in layers
        ]
        one.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return one


def _is_fit(layer: nn.Linear) -> bool:
    weight = layer.weight
    return is_untouched(layer) and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
