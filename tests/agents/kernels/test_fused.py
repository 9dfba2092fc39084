"""Norm, rotation and gate: the results and gradients of the plain formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from research_rl.agents.kernels.fused_ops import Rotary, Stream, gated, gated_linear, rms_norm


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The formula."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def plain_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As transformers writes it."""
    a, b = x.chunk(2, -1)
    return x * cos[0, :, None] + torch.cat((-b, a), -1) * sin[0, :, None]


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 5),
    size=st.integers(1, 20),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 1e3]),
    eps=st.sampled_from([1e-6, 1e-2]),
)
def test_a_norm_is_that_of_the_formula(rows: int, size: int, scale: float, eps: float) -> None:
    x, weight = scale * torch.randn(rows, size), torch.randn(size)
    torch.testing.assert_close(rms_norm(x, weight, eps), plain_norm(x, weight, eps))
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, eps), plain_norm(x, weight, eps))


@pytest.mark.parametrize("shape", [(3, 8), (3, 2, 8)])
def test_gradients_of_the_norm_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 0.1), (x, weight))


@pytest.mark.parametrize("size", [64, 896])  # the root of the second is rounded in bfloat16
@pytest.mark.parametrize("scale", [1e-3, 1.0])  # of rows beside which eps counts, and does not
def test_a_norm_in_bfloat16_is_rounded_but_not_longer(size: int, scale: float) -> None:
    torch.manual_seed(0)
    x = (scale * torch.randn(40, size)).bfloat16().requires_grad_()
    weight = torch.randn(size).bfloat16().requires_grad_()
    change = torch.randn(40, size).bfloat16()
    ours = rms_norm(x, weight, 1e-6)
    wide = [t.detach().float().requires_grad_() for t in (x, weight)]
    exact = plain_norm(wide[0], wide[1], 1e-6)
    found = torch.autograd.grad(ours, (x, weight), change)
    truths = torch.autograd.grad(exact, wide, change.float())
    for a, b in zip((ours, *found), (exact, *truths), strict=True):
        assert a.dtype == torch.bfloat16
        a, b = a.detach().double(), b.detach().double()
        assert float((a - b).norm() / b.norm()) < 0.005
        assert abs(float((a * b).sum() / (b * b).sum()) - 1) < 5e-4  # no systematic factor


def test_no_rows_have_no_gradient_and_do_no_harm() -> None:
    x, weight = torch.zeros(0, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    rms_norm(x, weight, 1e-6).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 8)
    assert weight.grad is not None
    assert not weight.grad.any()


@torch.no_grad()
def test_a_stream_adds_in_place_and_its_norm_follows() -> None:
    x, change, weight = torch.randn(4, 6), torch.randn(4, 6), torch.randn(6)
    stream = Stream(x.clone(), 1e-5)
    stream.add(change)
    torch.testing.assert_close(stream.normed(weight), plain_norm(x + change, weight, 1e-5))
    few = stream.first(2)
    few.add(change[:2])
    torch.testing.assert_close(few.x, x[:2] + 2 * change[:2])
    torch.testing.assert_close(few.normed(weight), plain_norm(x[:2] + 2 * change[:2], weight, 1e-5))


def test_a_stream_with_gradient_leaves_what_it_was_given() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    stream = Stream(x, 1e-5)
    stream.add(torch.ones(4, 6))
    assert stream.x is not x
    (slope,) = torch.autograd.grad(stream.x.sum(), x)
    assert torch.equal(slope, torch.ones(4, 6))


def test_a_turn_and_its_gradient_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    cos, sin = torch.randn(2, 1, 5, 8, dtype=torch.float64)  # its halves differ
    torch.testing.assert_close(Rotary(cos, sin)(x), plain_turn(x, cos, sin))
    with torch.no_grad():
        torch.testing.assert_close(Rotary(cos, sin)(x), plain_turn(x, cos, sin))
    assert torch.autograd.gradcheck(Rotary(cos, sin), (x,))


def test_a_gate_and_its_gradient_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    weight, bias = torch.randn(3, 7, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = (torch.nn.functional.silu(gate) * up) @ weight.T + bias
    torch.testing.assert_close(gated_linear(gate, up, weight, bias), expected)
    with torch.no_grad():
        torch.testing.assert_close(gated_linear(gate, up, weight, bias), expected)
        torch.testing.assert_close(gated(gate, up) @ weight.T + bias, expected)
    inputs = [x.clone().requires_grad_() for x in (gate, up, weight, bias)]
    assert torch.autograd.gradcheck(gated_linear, inputs)
    assert torch.autograd.gradcheck(lambda a, b: gated_linear(a, b, weight, None), inputs[:2])
    assert torch.autograd.gradcheck(lambda w: gated_linear(gate, up, w, None), inputs[2:3])
