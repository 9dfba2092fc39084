"""No family that may be packed or cached is refused, and none that may not is let through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from doubles import tiny
from doubles.families import MIXING, PLAIN
from torch import Tensor

from research_rl.agents.engines.slot_forward import SlotForward
from research_rl.agents.kernels import PackedForward, pack
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.proofs import prove_packed, prove_padded

DTYPES = (torch.float32, torch.bfloat16)
SMALL = {"initializer_range": 0.02}
"""The weights that families begin with: what tokens do to each other is small."""


def policy_of(family: str, dtype: torch.dtype, **settings: Any) -> LMPolicy:
    made = {**PLAIN, **MIXING}[family]
    policy = tiny.policy(family.split("-")[0], seed=2, **{**settings, **made})
    policy.model.to(dtype).eval()
    return policy


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", PLAIN)
def test_healthy_families_may_be_packed_and_cached(family: str, dtype: torch.dtype) -> None:
    policy = policy_of(family, dtype)
    before = {name: x.clone() for name, x in policy.model.state_dict().items()}
    prove_packed(PackedForward(policy.model))
    SlotForward(policy.model).check()
    prove_padded(policy.model)
    after = policy.model.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe", "cohere"])
def test_so_they_may_with_small_weights(family: str) -> None:
    for dtype in DTYPES:
        policy = policy_of(family, dtype, **SMALL)
        prove_packed(PackedForward(policy.model))
        SlotForward(policy.model).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", MIXING)
def test_families_that_mix_tokens_otherwise_are_refused(family: str, dtype: torch.dtype) -> None:
    for settings in ({}, SMALL):
        policy = policy_of(family, dtype, **settings)
        with pytest.raises(NotImplementedError, match="packed learning must"):
            prove_packed(PackedForward(policy.model))
        with pytest.raises(NotImplementedError, match=r"must.*use TurnwiseEngine for this model"):
            SlotForward(policy.model).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", MIXING)
def test_they_may_learn_from_padded_rows(family: str, dtype: torch.dtype) -> None:
    prove_padded(policy_of(family, dtype).model)


def sample(policy: LMPolicy) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (5, 30), wanted predictions (5, 29), and a weight for each of them."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(8, 200, (5, 30), generator=draw)
    ids[1, :9], ids[3, :6] = ids[0, :9], ids[2, :6]
    wanted = torch.zeros(5, 29, dtype=torch.bool)
    for row, (begin, end) in enumerate([(8, 28), (8, 20), (5, 25), (5, 12), (7, 29)]):
        wanted[row, begin:end] = True
    return ids, wanted, torch.randn(int(wanted.sum()), generator=draw)


def gradient(policy: LMPolicy) -> Tensor:
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]
    policy.zero_grad()
    return torch.cat([g.flatten() for g in grads])


def alone(policy: LMPolicy) -> Tensor:
    """The gradient of single rows through the model's own forward pass."""
    ids, wanted, weights = sample(policy)
    found = []
    for row, asked in zip(ids, wanted, strict=True):
        size = int(asked.nonzero().max()) + 2
        logits = policy.model(input_ids=row[None, :size], use_cache=False).logits[0, :-1]
        logprobs = logits.log_softmax(-1).gather(-1, row[1:size, None])[:, 0]
        found.append(logprobs[asked[: size - 1]])
    (torch.cat(found) * weights).sum().backward()
    return gradient(policy)


@pytest.mark.parametrize("family", PLAIN)
def test_the_gradient_of_what_is_packed_is_that_of_single_rows(family: str) -> None:
    policy = policy_of(family, torch.float32)
    expected = alone(policy)
    ids, wanted, weights = sample(policy)
    forward, packed = PackedForward(policy.model), pack(ids, wanted)
    with forward.enabled():
        states = forward.hidden(packed)
        (forward.head().logprobs(states, packed.targets)[0] * weights).sum().backward()
    assert float((gradient(policy) - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("family", MIXING)
def test_the_gradient_of_padded_rows_is_that_of_single_ones(family: str) -> None:
    policy = policy_of(family, torch.float32)
    expected = alone(policy)
    ids, wanted, weights = sample(policy)
    with torch.no_grad():  # what a sampler leaves behind in modules must not matter
        policy.model(input_ids=ids[:2, :9], use_cache=True)
    (policy(ids, torch.ones_like(ids)).logprobs[wanted] * weights).sum().backward()
    assert float((gradient(policy) - expected).norm() / expected.norm()) < 1e-5
