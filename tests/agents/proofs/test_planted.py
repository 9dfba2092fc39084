"""Models in which somebody has planted a small leak: each is found, whatever its size."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from doubles import tiny
from torch import Tensor, nn

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.kernels import PackedForward
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.proofs import prove_packed, prove_padded
from research_rl.agents.proofs.claim import asked_windows, state_put_back, strayed
from research_rl.agents.types import SamplingParams
from research_rl.trainers.learner import packed_forward

DTYPES = (torch.float32, torch.bfloat16)
SMALL = 1e-3
"""Of the leaks, beside what they leak into."""


class Wrapped(nn.Module):
    """A module whose output is changed: ``change(self, inputs, output)``.

    Args:
        inner: the module.
        change: what is done.
    """

    def __init__(self, inner: nn.Module, change: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.change = inner, change
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """What the change makes of the output."""
        return self.change(self, x, self.inner(x))


def by_convolution(self: Any, x: Tensor, out: Tensor) -> Tensor:
    return out + SMALL * nn.functional.pad(x, (0, 0, 1, 0))[..., :-1, :]


def by_looking_ahead(self: Any, x: Tensor, out: Tensor) -> Tensor:
    return out + SMALL * nn.functional.pad(x, (0, 0, 0, 1))[..., 1:, :]


def by_state(self: Any, x: Tensor, out: Tensor) -> Tensor:
    state = x.flatten(0, -2).mean(0) if self.kept is None else self.kept
    self.kept = x.flatten(0, -2).mean(0).detach()
    return out + SMALL * state


def by_sum(self: Any, x: Tensor, out: Tensor) -> Tensor:
    return out + SMALL * x.cumsum(-2)


def by_scale(self: Any, x: Tensor, out: Tensor) -> Tensor:
    return out * (1 + SMALL * x.detach().abs().amax())


def in_mlp(change: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        model.model.layers[0].mlp = Wrapped(model.model.layers[0].mlp, change)

    return plant


def by_place(model: Any) -> None:
    """Rotary positions are counted through the batch."""
    own = model.model.rotary_emb.forward

    def counted(x: Tensor, position_ids: Tensor) -> Any:
        return own(x, torch.arange(x.shape[1])[None])

    model.model.rotary_emb.forward = counted


def by_added_place(model: Any) -> None:
    """Something is added that depends on the place in the batch."""

    def hook(module: Any, given: Any, out: Tensor) -> Tensor:
        return out + SMALL * torch.arange(out.shape[1], dtype=out.dtype)[:, None]

    model.model.embed_tokens.register_forward_hook(hook)


def by_bias(model: Any) -> None:
    """Keys far away count less, by a mask."""
    own = model.model.layers[0].self_attn.forward

    def biased(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None:
            attention_mask = attention_mask + SMALL * torch.arange(attention_mask.shape[-1])
        return own(*args, attention_mask=attention_mask, **kwargs)

    model.model.layers[0].self_attn.forward = biased


def by_head(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, given, out: out * 2)


LEAKS: dict[str, tuple[Callable[[Any], None], str]] = {
    "convolution": (in_mlp(by_convolution), "change each other"),
    "looking ahead": (in_mlp(by_looking_ahead), "change each other"),
    "state": (in_mlp(by_state), "keep"),
    "sum": (in_mlp(by_sum), "change each other"),
    "scale": (in_mlp(by_scale), "change each other"),
    "place": (by_place, "whose (queries|keys) differ"),
    "added place": (by_added_place, "differ|change with that"),
    "bias": (by_bias, "adds something to its scores"),
    "head": (by_head, "whose logits differ"),
}


def planted(leak: str, dtype: torch.dtype, **settings: Any) -> LMPolicy:
    """A tiny Llama with small weights and a leak; shared weights are those of its family."""
    policy = tiny.policy("llama", **{"initializer_range": 0.02, **settings})
    LEAKS[leak][0](policy.model)
    policy.model.to(dtype).eval()
    return policy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leak", LEAKS)
def test_a_planted_leak_is_found_by_the_packed_learner(leak: str, dtype: torch.dtype) -> None:
    with pytest.raises(NotImplementedError, match=rf"packed learning must.*({LEAKS[leak][1]})"):
        prove_packed(PackedForward(planted(leak, dtype).model))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leak", [name for name in LEAKS if name != "head"])
def test_a_planted_leak_is_found_by_the_cached_engine(leak: str, dtype: torch.dtype) -> None:
    policy = planted(leak, dtype)
    with pytest.raises(NotImplementedError, match=r"must.*use TurnwiseEngine for this model"):
        CachedEngine(policy).run([[1, 2, 3]], SamplingParams(4), lambda rows: [None for _ in rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [6, 4096])
def test_a_window_that_is_not_handed_on_is_found(window: int, dtype: torch.dtype) -> None:
    policy = tiny.policy("starcoder2", initializer_range=0.02, sliding_window=window)
    model = policy.model.to(dtype).eval()
    prove_packed(PackedForward(model))
    for layer in model.model.layers:  # its mask still has the window
        layer.self_attn.config = copy.copy(model.config)
        layer.self_attn.config.sliding_window = None
    with pytest.raises(NotImplementedError, match=f"names a window of {window} tokens"):
        prove_packed(PackedForward(model))
    with pytest.raises(NotImplementedError, match=f"names a window of {window} tokens"):
        CachedEngine(policy).run([[1, 2, 3]], SamplingParams(4), lambda rows: [None for _ in rows])


def test_a_window_that_the_config_does_not_name_is_found_by_the_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = tiny.policy("starcoder2", initializer_range=0.02, sliding_window=6)
    model = policy.model.eval()
    for layer in model.model.layers:
        layer.self_attn.config = copy.copy(model.config)
        layer.self_attn.config.sliding_window = None
    monkeypatch.setattr("research_rl.agents.proofs.claim.asked_windows", lambda config: [])
    with pytest.raises(NotImplementedError, match="whose mask is another"):
        prove_packed(PackedForward(model))


def test_each_layer_of_a_config_has_its_window() -> None:
    config = tiny.model(
        "gemma2", sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    ).config
    assert asked_windows(config) == [6, None]
    assert asked_windows(tiny.model("mistral", sliding_window=6).config) == [6]
    assert asked_windows(tiny.model("llama").config) == []
    assert asked_windows(tiny.model("qwen2", use_sliding_window=False).config) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leak", ["scale", "state"])
def test_what_mixes_padded_rows_too_does_not_learn_at_all(leak: str, dtype: torch.dtype) -> None:
    policy = planted(leak, dtype, initializer_range=0.2)
    why = {"scale": "change each other; set model.updates.micro_batch_size: 1", "state": "keep"}
    with pytest.raises(NotImplementedError, match=f"learning from padded.*{why[leak]}"):
        packed_forward(policy)
    if leak == "scale":
        assert packed_forward(policy, alone=True) is None
    else:
        with pytest.raises(NotImplementedError, match="keep nothing of one batch for the next"):
            packed_forward(policy, alone=True)


@pytest.mark.parametrize("leak", ["convolution", "sum", "place", "added place", "head"])
def test_what_only_mixes_a_flat_batch_learns_padded(
    leak: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert packed_forward(planted(leak, torch.float32)) is None
    assert "learning from padded rollouts, which costs more: packed learning must" in caplog.text


def test_looking_ahead_is_found_in_padded_rows_too() -> None:
    policy = planted("looking ahead", torch.float32)
    with pytest.raises(NotImplementedError, match=r"not see what comes later|in company"):
        prove_padded(policy.model)


@pytest.mark.parametrize("prove", [prove_padded, lambda model: prove_packed(PackedForward(model))])
def test_a_model_without_finite_logits_is_said_to_be_unproved(
    prove: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    policy = tiny.policy("llama")
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(torch.nan)
    with caplog.at_level(logging.WARNING):
        prove(policy.model)
    assert "is taken unproved: its logits are not finite" in caplog.text


def test_what_a_proof_leaves_in_modules_is_put_back() -> None:
    policy = planted("state", torch.float32)
    wrapped: Any = policy.model.model.layers[0].mlp
    wrapped.register_buffer("counted", torch.zeros(2))
    with state_put_back(policy.model):
        policy.model(input_ids=torch.tensor([[1, 2, 3]]))
        wrapped.counted.add_(1)
        wrapped.new = torch.ones(1)
        assert wrapped.kept is not None
    assert wrapped.kept is None
    assert wrapped.counted.tolist() == [0, 0]
    assert not hasattr(wrapped, "new")


def test_distances_are_relative_to_each_token() -> None:
    theirs = torch.tensor([[1e-6, 0.0], [1e6, 0.0], [0.0, 0.0]])
    ours = torch.tensor([[2e-6, 0.0], [1e6, 1e5], [0.0, 0.0]])
    torch.testing.assert_close(strayed(ours, theirs), torch.tensor([1.0, 0.1, 0.0]))
    assert float(strayed(torch.full((1, 2), torch.nan), theirs[:1])) != 0.0
