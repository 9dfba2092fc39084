"""Attention of a block: the cheap gradient is that of the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from research_rl.agents.kernels.block_attention import _folded, _fused, attend


def block(dtype: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
    """Queries (2, 4, 5, 16), keys and values (2, 2, 9, 16), a mask, the gradient of the result."""
    draw = torch.Generator().manual_seed(0)
    sizes = ((2, 4, 5, 16), (2, 2, 9, 16), (2, 2, 9, 16))
    inputs = [torch.randn(s, generator=draw).to(dtype).requires_grad_() for s in sizes]
    hidden = torch.arange(9) > torch.arange(4, 9)[:, None]
    mask = torch.zeros(2, 1, 5, 9, dtype=dtype).masked_fill(hidden, -torch.inf)
    return inputs, mask, torch.randn(sizes[0], generator=draw).to(dtype)


def plain(inputs: list[Tensor], mask: Tensor, scale: float) -> Tensor:
    """The formula in float64, keys and values repeated for each query head."""
    q, k, v = (x.double() for x in inputs)
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    return (q @ k.transpose(2, 3) * scale + mask.double()).softmax(-1) @ v


@pytest.mark.parametrize("scaling", [None, 0.4])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_result_and_gradient_are_those_of_the_formula(
    dtype: torch.dtype, near: float, scaling: float | None
) -> None:
    inputs, mask, change = block(dtype)
    found = attend(inputs[0], inputs[1], inputs[2], mask, scaling, 0.0, None)
    expected = plain(inputs, mask, scaling or 0.25)
    slopes = torch.autograd.grad(found, inputs, change)
    truths = torch.autograd.grad(expected, inputs, change.double())
    for a, b in zip((found, *slopes), (expected, *truths), strict=True):
        assert a.dtype == dtype
        assert float((a - b).norm() / b.norm()) < near


def test_without_gradient_the_result_is_the_same() -> None:
    inputs, mask, _ = block(torch.bfloat16)
    with torch.no_grad():
        scored = attend(inputs[0], inputs[1], inputs[2], mask, None, 0.0, None)
    assert torch.equal(scored, attend(inputs[0], inputs[1], inputs[2], mask, None, 0.0, None))


def test_folded_heads_give_the_same() -> None:
    """What stands in for shared key heads on a GPU, here on the CPU."""
    inputs, mask, change = block(torch.float32)
    found = _folded(inputs[0], inputs[1], inputs[2], mask, 0.25, 0.0)
    expected = _fused(inputs[0], inputs[1], inputs[2], mask, 0.25)
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, inputs, change),
        torch.autograd.grad(expected, inputs, change),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
