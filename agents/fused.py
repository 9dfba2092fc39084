"""Norm, rotation and gate of a layer in few operations, with gradients that keep little.

An operation on a small tensor costs what it takes to start it, and one on a large tensor what it
takes to read and write it. The plain modules take eight for a norm and as many for a rotation.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    Args:
        x: (..., D).
        weight: (D,).
        eps: above.
    """
    if x.device.type != "cpu" or x.dtype != weight.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        normed: Tensor = _Norm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return normed
    size = x.shape[-1]
    rows = x.reshape(-1, size)
    return _scaled(_widened(rows, eps), _unit_length(rows))[0][:, :size].mul(weight).view(x.shape)


class Stream:
    """The sum that the layers add to; changed in place where there is no gradient.

    Args:
        x: (n, D).
        eps: of the norms.
    """

    def __init__(self, x: Tensor, eps: float) -> None:
        self._eps = eps
        self._wide = self._length = None
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            self._wide, self._length = _widened(x, eps), _unit_length(x)
            x = self._wide[:, :-1]
        self.x = x

    def normed(self, weight: Tensor) -> Tensor:
        """Return rms_norm (n, D) of it."""
        if self._wide is None or self._length is None:
            return rms_norm(self.x, weight, self._eps)
        return _scaled(self._wide, self._length)[0][:, :-1] * weight

    def add(self, change: Tensor) -> None:
        """Add (n, D)."""
        if torch.is_grad_enabled():
            self.x = self.x + change
        else:
            self.x.add_(change)

    def first(self, count: int) -> Stream:
        """The first rows alone; they stay the same memory."""
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


def _scaled(wide: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, D + 1) scaled to their lengths (n, 1), and their lengths (n, 1) before.

    Weight normalisation is the one kernel on a CPU that divides rows by their length at once.
    """
    if not len(wide):  # it divides by the number of rows as well
        return wide, length
    found: tuple[Tensor, Tensor] = torch._weight_norm_interface(wide, length, 0)
    return found


class Turn:
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
        """x (n, H, D), turned."""
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
    """silu(gate) * up, both (n, F) (arXiv 2002.05202)."""
    if torch.is_grad_enabled():
        return F.silu(gate) * up
    return F.silu(gate).mul_(up)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = x.shape[-1]
        rows = x.reshape(-1, size)
        wide = _widened(rows, eps)
        unit, lengths = _scaled(wide, _unit_length(rows))
        ctx.save_for_backward(wide, lengths, weight)
        return unit[:, :size].mul(weight).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        wide, lengths, weight = ctx.saved_tensors
        size = weight.shape[0]
        change = gradients[0].reshape(-1, size)
        factor = size**0.5 / lengths  # (n, 1)
        of_unit = F.pad(change * weight, (0, 1))
        of_wide, _ = torch.ops.aten._weight_norm_interface_backward(
            of_unit, wide, _unit_length(change), lengths, 0
        )
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = _column_sums(change, wide[:, :size], factor).to(weight.dtype)
        return of_wide[:, :size].reshape(gradients[0].shape), of_weight, None


def _column_sums(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    """sum over n of a (n, D) * b (n, D) * factor (n, 1), at least in float32."""
    full = torch.promote_types(a.dtype, torch.float32)
    return torch.einsum("nd,nd,no->d", a.to(full), b.to(full), factor.to(full))
