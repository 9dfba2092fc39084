"""Weights that lie as the matrix unit reads them give the same results."""

from __future__ import annotations

import copy

import pytest
import torch
from doubles import tiny
from torch import nn

from research_rl.agents.kernels.cpu_linear import PackedLinear, pack_linears
from research_rl.agents.kernels.torch_internals import can_pack

needs_packing = pytest.mark.skipif(not can_pack(), reason="torch cannot pack bfloat16 weights here")


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 20, 300])
@torch.no_grad()
def test_products_are_the_same_bit_by_bit(rows: int, bias: bool) -> None:
    layer = nn.Linear(48, 80, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(1, rows, 48, dtype=torch.bfloat16)
    torch.testing.assert_close(PackedLinear(layer)(x), layer(x), rtol=0, atol=0)


@needs_packing
@torch.no_grad()
def test_a_model_computes_the_same_and_its_ties_stay() -> None:
    plain = tiny.policy(tie_word_embeddings=True).model.to(torch.bfloat16).eval()
    packed = copy.deepcopy(plain)
    pack_linears(packed)
    assert sum(isinstance(m, PackedLinear) for m in packed.modules()) == sum(
        isinstance(m, nn.Linear) for m in plain.modules()
    )
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    ours, stock = packed(input_ids=ids).logits, plain(input_ids=ids).logits
    torch.testing.assert_close(ours, stock, rtol=0, atol=0)


def test_other_dtypes_and_layers_with_hooks_are_left_alone() -> None:
    hooked = nn.Linear(4, 4, dtype=torch.bfloat16)
    hooked.register_forward_hook(lambda module, inputs, out: None)
    model = nn.Sequential(nn.Linear(4, 4), hooked)
    before = list(model)
    pack_linears(model)
    assert list(model) == before


def test_a_build_that_cannot_pack_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("research_rl.agents.kernels.cpu_linear.can_pack", lambda: False)
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16))
    before = list(model)
    pack_linears(model)
    assert list(model) == before
