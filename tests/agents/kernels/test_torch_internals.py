"""The private parts of torch and transformers that are used are there, and do what they did.

A failure here after an upgrade names the part; agents/kernels/torch_internals.py says what it is
for. Where a part is gone, the kernels say so once and give the same results without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from doubles import tiny
from torch import Tensor, nn

from research_rl.agents.kernels import torch_internals as internals
from research_rl.agents.kernels.fused_ops import Stream, rms_norm
from research_rl.agents.kernels.slot_attention import SLOTS

CHANGED = f"torch {torch.__version__}, transformers {transformers.__version__}: "


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """What torch has is looked up once a process."""
    internals._has.cache_clear()
    yield
    internals._has.cache_clear()


def close(found: Tensor, expected: Tensor, part: str) -> None:
    said = f"{CHANGED}{part} computes something else than it did"
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6), said


def test_the_kernel_for_weight_norm_scales_rows_to_lengths() -> None:
    assert internals.has_length_kernel(), f"{CHANGED}torch._weight_norm_interface is gone"
    rows = torch.randn(5, 7, requires_grad=True)
    length, change = torch.rand(5, 1) + 0.5, torch.randn(5, 7)
    expected = rows / rows.norm(dim=1, keepdim=True) * length
    scaled, had = internals.over_lengths(rows.detach(), length)
    close(scaled, expected, "torch._weight_norm_interface")
    close(had, rows.norm(dim=1, keepdim=True), "torch._weight_norm_interface")
    (slope,) = torch.autograd.grad(expected, rows, change)
    found = internals.over_lengths_backward(change, rows.detach(), length, had)
    close(found, slope, "torch.ops.aten._weight_norm_interface_backward")


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("_softmax_backward_data", lambda x: x.softmax(-1), internals.softmax_backward),
        ("ops.aten.silu_backward", F.silu, internals.silu_backward),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_gradients_in_one_pass_are_those_of_autograd(
    there: bool,
    name: str,
    forward: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor, Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert internals._has(name, ""), f"{CHANGED}torch.{name} is gone"
    if not there:
        monkeypatch.setattr(internals, "_has", lambda name, instead: False)
    x, change = torch.randn(3, 4, 6, requires_grad=True), torch.randn(3, 4, 6)
    out = forward(x)
    (slope,) = torch.autograd.grad(out, x, change)
    given = out if backward is internals.softmax_backward else x
    close(backward(change, given.detach()), slope, f"torch.{name}")


def test_packed_weights_compute_the_product() -> None:
    if torch.backends.mkldnn.is_available():
        for name in ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported"):
            assert hasattr(torch.ops.mkldnn, name), f"{CHANGED}torch.ops.mkldnn.{name} is gone"
    if not internals.can_pack():
        pytest.skip("this processor computes no bfloat16 by oneDNN")
    layer = nn.Linear(16, 24, dtype=torch.bfloat16)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    x = torch.randn(3, 16, dtype=torch.bfloat16)
    packed = internals.packed_weight(weight)
    found = internals.packed_product()(x, packed, bias, *internals.UNCHANGED)
    close(found.float(), layer(x).detach().float(), "torch.ops.mkldnn._linear_pointwise")


def nothing(*_: Any) -> None:
    """A hook."""


TOUCHES: dict[str, Callable[[nn.Module], Any]] = {
    "forward hook": lambda m: m.register_forward_hook(nothing),
    "forward pre-hook": lambda m: m.register_forward_pre_hook(nothing),
    "backward hook": lambda m: m.register_full_backward_hook(nothing),
    "backward pre-hook": lambda m: m.register_full_backward_pre_hook(nothing),
    "compile": lambda m: m.compile(backend="eager"),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_hooks_and_compiled_layers_are_seen(touch: str) -> None:
    layer = nn.Linear(2, 2)
    assert internals.is_untouched(layer), f"{CHANGED}a new layer has hooks, or is compiled"
    TOUCHES[touch](layer)
    assert not internals.is_untouched(layer), f"{CHANGED}a {touch} of a module is not seen"


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_the_whole_process_are_seen(kind: str) -> None:
    assert not internals.has_global_hooks(), f"{CHANGED}torch keeps global hooks elsewhere"
    handle = getattr(nn.modules.module, f"register_module_{kind}_hook")(nothing)
    try:
        assert internals.has_global_hooks(), f"{CHANGED}a global {kind} hook is not seen"
    finally:
        handle.remove()


def test_another_tensor_stands_in_for_a_parameter() -> None:
    layer = nn.Linear(2, 3, bias=False)
    standing = torch.zeros(3, 2)
    slots = internals.parameters_of(layer)
    own, slots["weight"] = slots["weight"], standing
    said = f"{CHANGED}a module no longer reads its parameters from _parameters"
    assert not layer(torch.ones(2)).any(), said
    slots["weight"] = own
    assert layer.weight is own, said


def test_a_model_attends_by_what_its_config_names() -> None:
    model: Any = tiny.model("llama")
    before = model.config._attn_implementation
    ids = torch.arange(4)[None]
    with internals.attention_replaced(model, SLOTS), pytest.raises(NotImplementedError) as refused:
        model(input_ids=ids)
    said = f"{CHANGED}a model no longer attends by config._attn_implementation"
    assert "cached engine" in str(refused.value), said
    assert model.config._attn_implementation == before
    model(input_ids=ids)


def test_a_model_names_its_layers() -> None:
    said = f"{CHANGED}_no_split_modules no longer names the layers of a model"
    assert internals.unsplit_modules(tiny.model("llama")) == {"LlamaDecoderLayer"}, said


def test_a_part_that_is_gone_is_said_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(torch, "_weight_norm_interface")
    x, weight = torch.randn(4, 6), torch.randn(6)
    expected = F.rms_norm(x, (6,), weight, 1e-5)
    for _ in range(2):
        assert torch.equal(rms_norm(x, weight, 1e-5), expected)
        with torch.no_grad():
            assert torch.equal(Stream(x, 1e-5).normed(weight), expected)
    (said,) = [r.getMessage() for r in caplog.records]
    assert torch.__version__ in said
    assert "lacks torch._weight_norm_interface: norms on a CPU" in said
    assert f"torch=={internals.SEEN_TORCH}" in said


@pytest.mark.parametrize(("value", "plain"), [("1", True), ("0", False), ("", False)])
def test_the_switch(value: str, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(internals.PLAIN_KERNELS, value)
    assert internals.plain_kernels() == plain
    assert internals.has_length_kernel() != plain
