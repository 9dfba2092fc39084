"""Parts of a layer in few operations: the norm, the rotary embedding and the gate, with gradients.

The plain modules take eight operations for a norm and as many for a rotary embedding. Each costs
the time to start it on a small tensor, and the time to read and write it on a large one.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from research_rl.agents.kernels.torch_internals import (
    has_length_kernel,
    over_lengths,
    over_lengths_backward,
    silu_backward,
)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    Args:
        x: (..., D).
        weight: (D,).
        eps: keeps a row of zeros finite.
    """
    if x.device.type != "cpu" or x.dtype != weight.dtype or not has_length_kernel():
        return F.rms_norm(x, weight.shape, weight, eps)
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        normed: Tensor = _Norm.apply(rows, weight, eps)  # type: ignore[no-untyped-call]
        return normed.view(x.shape)
    return _normed(_widened(rows, eps), _unit_length(rows), weight)[0].view(x.shape)


class Stream:
    """The sum that the layers add to; changed in place where there is no gradient.

    Args:
        x: (n, D).
        eps: of the norms.
    """

    def __init__(self, x: Tensor, eps: float) -> None:
        self._eps = eps
        self._wide = self._length = None
        if x.device.type == "cpu" and not torch.is_grad_enabled() and has_length_kernel():
            self._wide, self._length = _widened(x, eps), _unit_length(x)
            x = self._wide[:, :-1]
        self.x = x

    def normed(self, weight: Tensor) -> Tensor:
        """Return rms_norm (n, D) of it."""
        if self._wide is None or self._length is None:
            return rms_norm(self.x, weight, self._eps)
        return _normed(self._wide, self._length, weight)[0]

    def add(self, change: Tensor) -> None:
        """Add (n, D)."""
        if torch.is_grad_enabled():
            self.x = self.x + change
        else:
            self.x.add_(change)

    def first(self, count: int) -> Stream:
        """The first rows alone, in the same memory."""
        rows = copy.copy(self)
        rows.x = self.x[:count]
        if self._wide is not None and self._length is not None:
            rows._wide, rows._length = self._wide[:count], self._length[:count]
        return rows


def _widened(x: Tensor, eps: float) -> Tensor:
    """x (n, D) with a column (n, D + 1) that stands for eps in the sum of squares."""
    rows, size = x.shape
    return torch.cat((x, x.new_full((rows, 1), (eps * size) ** 0.5)), 1)


def _unit_length(x: Tensor) -> Tensor:
    """The length of rows (n, D) whose mean square is 1, for each of them: (n, 1)."""
    return x.new_full((len(x), 1), x.shape[1] ** 0.5)


def _normed(wide: Tensor, length: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, D + 1), widened, normed to (n, D); their lengths (n, 1) before.

    Weight normalisation is the one kernel on a CPU that divides rows by their length at once.

    Args:
        wide: (n, D + 1).
        length: (n, 1), that of a row whose mean square is 1.
        weight: (D,).
    """
    if not len(wide):  # the kernel divides by the number of rows as well
        return wide[:, :-1], length
    unit, lengths = over_lengths(wide, length)
    return _times(unit[:, :-1], weight), lengths


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, D) * weight (D,), and what rounding took from sqrt(D) as a length in x's dtype."""
    lost = _lost(weight.shape[0], x.dtype)
    return x * weight if lost == 1.0 else torch.addcmul(x.new_zeros(1), x, weight, value=lost)


@lru_cache
def _lost(size: int, dtype: torch.dtype) -> float:
    exact = size**0.5
    ratio = exact / float(torch.tensor(exact, dtype=dtype))
    return ratio if abs(ratio - 1) > 1e-6 else 1.0


class Rotary:
    """Rotary positions (arXiv 2104.09864): halves (a, b) become (a cos - b sin, b cos + a sin).

    Args:
        cos: (1, n, D).
        sin: (1, n, D).
    """

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        half = cos.shape[-1] // 2
        self._cos = cos[0, :, None]
        self._sin = sin[0, :, None, :half], sin[0, :, None, half:]

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, H, D), rotated."""
        if torch.is_grad_enabled() and x.requires_grad:
            turned: Tensor = _Turned.apply(x, self._cos, *self._sin)  # type: ignore[no-untyped-call]
            return turned
        return _turned(x, self._cos, *self._sin, 1)


def _turned(x: Tensor, cos: Tensor, of_b: Tensor, of_a: Tensor, sign: int) -> Tensor:
    """(a cos - sign b of_b, b cos + sign a of_a) for the halves (a, b) of x (n, H, D)."""
    out = x * cos
    half = of_b.shape[-1]
    a, b = x[..., :half], x[..., half:]
    out[..., :half].addcmul_(b, of_b, value=-sign)
    out[..., half:].addcmul_(a, of_a, value=sign)
    return out


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(cos, first, second)
        return _turned(x, cos, first, second, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        cos, first, second = ctx.saved_tensors
        return _turned(gradients[0], cos, second, first, -1), None, None, None


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, both (n, F) (arXiv 2002.05202); without gradient."""
    return F.silu(gate).mul_(up)


def gated_linear(gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer (n, D) of silu(gate) * up, which is computed again for the gradient.

    Args:
        gate: (n, F).
        up: (n, F).
        weight: (D, F).
        bias: (D,) or None.
    """
    if not torch.is_grad_enabled():
        return F.linear(gated(gate, up), weight, bias)
    found: Tensor = _GatedLinear.apply(gate, up, weight, bias)  # type: ignore[no-untyped-call]
    return found


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return F.linear(gated(gate, up), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gate, up, weight = ctx.saved_tensors
        wanted, (change,) = ctx.needs_input_grad, gradients
        open_ = F.silu(gate)
        of_weight = change.T @ (open_ * up) if wanted[2] else None
        of_bias = change.sum(0) if wanted[3] else None
        if not (wanted[0] or wanted[1]):
            return None, None, of_weight, of_bias
        inner = change @ weight  # (n, F)
        of_up = open_.mul_(inner)
        of_gate = silu_backward(inner.mul_(up), gate)
        return of_gate, of_up, of_weight, of_bias


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = _widened(x, eps)
        out, lengths = _normed(wide, _unit_length(x), weight)
        ctx.save_for_backward(wide, lengths, weight)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        wide, lengths, weight = ctx.saved_tensors
        change, size = gradients[0], weight.shape[0]
        if not len(wide):
            return change, torch.zeros_like(weight), None
        of_unit = F.pad(_times(change, weight), (0, 1))
        of_wide = over_lengths_backward(of_unit, wide, _unit_length(change), lengths)
        of_weight = None
        if ctx.needs_input_grad[1]:
            factor = size**0.5 / lengths  # (n, 1)
            of_weight = _column_sums(change, wide[:, :size], factor).to(weight.dtype)
        return of_wide[:, :size], of_weight, None


def _column_sums(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    """sum over n of a (n, D) * b (n, D) * factor (n, 1), at least in float32."""
    full = torch.promote_types(a.dtype, torch.float32)
    return torch.einsum("nd,nd,no->d", a.to(full), b.to(full), factor.to(full))
