"""A model's layers computed by the decoder are the model; what it does not know it leaves alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from doubles import tiny
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel

from research_rl.agents.engines.slot_forward import SlotForward
from research_rl.agents.kernels.cpu_linear import joined
from research_rl.agents.kernels.decoder import Decoder, decoder_of
from research_rl.agents.kernels.kv_cache import SlotCache
from research_rl.agents.kernels.packed_forward import PackedForward
from research_rl.agents.kernels.packing import pack
from research_rl.agents.kernels.slot_attention import flat_batch, slots_enabled
from research_rl.agents.policy.policy import LMPolicy

KNOWN: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 5},
    "qwen2-window": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 5},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-scaled": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}


def make(family: str) -> LMPolicy:
    return tiny.policy(family.split("-")[0], seed=3, **KNOWN[family])


def causal(window_seen: list[int | None]) -> Any:
    """Attention of one sequence, as the formula has it."""

    def attend(
        layer: int, q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        window_seen.append(window)
        there, here = torch.arange(len(k)), torch.arange(len(q))[:, None]
        hidden = there > here
        if window is not None:
            hidden |= there <= here - window
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q, k) * scaling
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return torch.einsum("hij,jhd->ihd", weights, v)

    return attend


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("family", KNOWN)
def test_logits_and_gradients_are_the_models(family: str, copied: bool) -> None:
    model: Any = make(family).model.eval()
    ids = torch.randint(0, 256, (14,), generator=torch.Generator().manual_seed(1))
    ids[4] = model.config.pad_token_id  # its embedding has no gradient
    expected = model(input_ids=ids[None], use_cache=False).logits[0]
    decoder = decoder_of(copy.deepcopy(model) if copied else model, copied)
    assert decoder is not None
    windows: list[int | None] = []
    found = decoder.logits(ids, torch.arange(14), causal(windows), 14)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(windows) == model.config.num_hidden_layers
    assert (5 in windows) == ("window" in family or family == "mistral")
    with torch.no_grad():
        few = decoder.logits(ids, torch.arange(14), causal([]), 3)
    torch.testing.assert_close(few, expected[:3], rtol=1e-4, atol=1e-5)
    if not copied:
        change = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
        weights = list(model.parameters())
        ours = torch.autograd.grad(found, weights, change)
        theirs = torch.autograd.grad(expected, weights, change)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


@torch.no_grad()
def test_a_copy_in_bfloat16_is_as_near_as_the_model_in_bfloat16() -> None:
    exact: Any = make("qwen2").model.eval()
    low: Any = copy.deepcopy(exact).bfloat16()
    ids = torch.randint(0, 256, (14,), generator=torch.Generator().manual_seed(1))
    truth = exact(input_ids=ids[None], use_cache=False).logits[0]
    stock = low(input_ids=ids[None], use_cache=False).logits[0].float()
    decoder = decoder_of(low, copied=True)
    assert decoder is not None
    ours = decoder.logits(ids, torch.arange(14), causal([]), 14).float()
    assert float((ours - truth).norm()) < 1.5 * float((stock - truth).norm())


def test_a_copy_is_emptied_and_the_model_is_not() -> None:
    model: Any = make("llama").model
    twin: Any = copy.deepcopy(model)
    before = sum(p.numel() for p in model.parameters())
    decoder_of(twin, copied=True)
    decoder_of(model, copied=False)
    assert all(type(layer) is nn.Identity for layer in twin.model.layers)
    assert type(twin.lm_head) is nn.Identity  # else it would be held twice
    assert sum(p.numel() for p in model.parameters()) == before


def nothing(*_: Any) -> None:
    """A hook."""


CHANGES: dict[str, Any] = {
    "forward hook": lambda m: m.model.layers[0].mlp.register_forward_hook(nothing),
    "forward pre-hook": lambda m: m.model.layers[0].mlp.register_forward_pre_hook(nothing),
    "backward hook": lambda m: m.model.layers[1].register_full_backward_hook(nothing),
    "backward pre-hook": lambda m: m.model.norm.register_full_backward_pre_hook(nothing),
    "other module": lambda m: setattr(m.model, "norm", nn.Identity()),
    "forward of its own": lambda m: setattr(m.lm_head, "forward", m.lm_head.forward),
    "compiled": lambda m: m.model.layers[0].compile(backend="eager"),
    "other eps": lambda m: setattr(m.model.norm, "variance_epsilon", 0.5),
    "bounded embeddings": lambda m: setattr(m.model.embed_tokens, "max_norm", 1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_left_to_itself(change: str) -> None:
    model: Any = make("llama").model
    assert isinstance(decoder_of(model, copied=False), Decoder)
    CHANGES[change](model)
    assert decoder_of(model, copied=False) is None


def test_hooks_on_all_modules_are_seen() -> None:
    model: Any = make("llama").model
    handle = nn.modules.module.register_module_full_backward_hook(nothing)
    try:
        assert decoder_of(model, copied=False) is None
    finally:
        handle.remove()
    assert decoder_of(model, copied=False) is not None


@torch.no_grad()
def test_layers_that_the_config_leaves_out_are_left_out() -> None:
    model: Any = make("llama").model.eval()
    model.config.num_hidden_layers = 1
    ids = torch.arange(9)
    decoder = decoder_of(model, copied=False)
    assert decoder is not None
    found = decoder.logits(ids, ids, causal([]), 9)
    torch.testing.assert_close(
        found, model(input_ids=ids[None], use_cache=False).logits[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "mixtral"])
def test_other_families_are_left_to_themselves(family: str) -> None:
    sizes: dict[str, Any] = {"num_local_experts": 2} if family == "mixtral" else {}
    assert decoder_of(tiny.policy(family, **sizes).model, copied=False) is None


@torch.no_grad()
def test_joined_products_are_those_of_each_layer() -> None:
    layers = [nn.Linear(8, 3), nn.Linear(8, 5, bias=False), nn.Linear(8, 2)]
    x = torch.randn(4, 8)
    (one,) = joined(layers)
    torch.testing.assert_close(one(x), torch.cat([layer(x) for layer in layers], -1))


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the modules of a Llama model are called."""
    called: list[int] = []
    plain = LlamaModel.forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(1)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", watched)
    return called


def test_dropout_and_checkpointed_activations_are_left_to_the_model(bodies: list[int]) -> None:
    """They are the modules' own business; the decoder would leave them out."""
    model: Any = make("llama").model.train()
    forward = PackedForward(model)
    packed = pack(torch.randint(0, 256, (1, 9)), torch.ones(1, 8, dtype=torch.bool))

    def calls() -> int:
        bodies.clear()
        with forward.enabled():
            forward.hidden(packed).sum().backward()
        return len(bodies)

    assert calls() == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert calls() == 1
    model.config.attention_dropout = 0.5
    assert calls() == 1
    model.eval()
    assert calls() == 0
    model.train()
    model.config.attention_dropout = 0.0
    model.activation_checkpointing_enable()
    assert calls() >= 1


@torch.no_grad()
def test_slots_use_it_but_not_under_autocast(bodies: list[int]) -> None:
    forward = SlotForward(make("llama").model.eval())
    cache = SlotCache(1, 4)
    cache.reserve(1)

    def calls() -> int:
        bodies.clear()
        last, lengths = torch.tensor([5]), torch.tensor([0])
        with slots_enabled(forward.model):
            forward(flat_batch(cache, last, lengths, 1, []), 1)
        return len(bodies)

    assert calls() == 0
    cache = SlotCache(1, 4)  # of another dtype
    cache.reserve(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert calls() == 1


@torch.no_grad()
def test_a_copy_that_keeps_its_weights_shares_them() -> None:
    model: Any = make("llama").model.eval()
    kept = SlotForward(copy.copy(model), own=False, keeps=True)
    assert kept._decoder is not None
    assert all(type(layer) is not nn.Identity for layer in model.model.layers)
    held = {weight.data_ptr() for weight in model.parameters()}
    layer = kept._decoder._layers[0]
    assert len(layer.qkv) == 3
    assert all(product.weight.data_ptr() in held for product in layer.qkv)  # type: ignore[attr-defined]
