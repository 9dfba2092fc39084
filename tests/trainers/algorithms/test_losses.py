"""The formulas of the loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research_rl.trainers.algorithms.losses import (
    cispo_surrogate,
    clipped_surrogate,
    geometric_surrogate,
    kl_estimate,
    sequence_log_ratio,
    soft_gate_surrogate,
    token_weights,
    value_loss,
)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.5, -1.0]),
        ("k2", [0.125, 0.5]),
        ("k3", [math.exp(-0.5) - 0.5, math.e - 2]),
        ("abs", [0.5, 1.0]),
    ],
)
def test_kl_by_hand(estimator: str, expected: list[float]) -> None:
    logprobs, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    found = kl_estimate(logprobs, ref, estimator)  # type: ignore[arg-type]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_k3_is_cut_and_keeps_a_finite_gradient() -> None:
    logprobs = torch.tensor([-200.0, -4.0, 0.0], requires_grad=True)
    kl = kl_estimate(logprobs, torch.tensor([0.0, -1.0, -200.0]), "k3")
    assert kl.tolist() == [10.0, 10.0, 10.0]
    kl.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0, 0.0, 0.0]


def test_k3_gradient_by_hand() -> None:
    logprobs = torch.tensor([-1.0], requires_grad=True)
    kl_estimate(logprobs, torch.tensor([-1.5]), "k3").sum().backward()
    assert logprobs.grad is not None  # d/dlogp of exp(d) - d - 1 with d = ref - logp: 1 - exp(d)
    assert float(logprobs.grad) == pytest.approx(1 - math.exp(-0.5))


def test_k3_estimates_the_kl() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    exact = (p * (p / q).log()).sum()
    for estimator in ("k1", "k3"):
        found = (p * kl_estimate(p.log(), q.log(), estimator)).sum()  # type: ignore[arg-type]
        assert float(found) == pytest.approx(float(exact), abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.6, True),  # cut at 1 + 0.3
        (0.5, 2.0, -1.0, False),  # the pessimistic side is not cut
        (0.5, -2.0, 1.6, True),  # cut at 1 - 0.2
        (1.5, -2.0, 3.0, False),
    ],
)
def test_surrogate_by_hand(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found, cut = clipped_surrogate(log_ratio, torch.tensor([[advantage]]), 0.2, 0.3)
    assert float(found) == pytest.approx(loss)
    assert bool(cut) is clipped
    found.sum().backward()
    assert log_ratio.grad is not None
    assert float(log_ratio.grad) == pytest.approx(0.0 if clipped else -ratio * advantage)


MASK = torch.tensor([[True, True, True, False], [False, True, False, False]])


@pytest.mark.parametrize(
    ("how", "first", "second"),
    [
        ("token-mean", 1 / 4, 1 / 4),
        ("sequence-mean", 1 / 6, 1 / 2),
        ("sequence-sum", 1 / 2, 1 / 2),
        ("fixed-length", 0.05, 0.05),
    ],
)
def test_weights_by_hand(how: str, first: float, second: float) -> None:
    found = token_weights(
        MASK,
        how,  # type: ignore[arg-type]
        num_tokens=torch.tensor(4.0),
        num_rows=torch.tensor(2.0),
        length=10,
    )
    expected = torch.tensor([[first, first, first, 0.0], [0.0, second, 0.0, 0.0]])
    assert torch.allclose(found, expected)


def test_a_rollout_without_loss_tokens_weighs_nothing() -> None:
    mask = torch.tensor([[False, False], [True, True]])
    found = token_weights(mask, "sequence-mean", torch.tensor(2.0), torch.tensor(2.0))
    assert found.tolist() == [[0.0, 0.0], [0.25, 0.25]]


def test_fixed_length_needs_a_length() -> None:
    with pytest.raises(ValueError, match="must have a length"):
        token_weights(MASK, "fixed-length", torch.tensor(4.0), torch.tensor(2.0))


def test_only_k2_has_the_gradient_of_the_kl() -> None:
    logits = torch.tensor([0.3, -0.2, 0.6], requires_grad=True)
    ref = torch.tensor([0.2, 0.3, 0.5]).log()

    def gradient(value: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(value, logits)[0]
        return found

    logprobs = logits.log_softmax(0)
    exact = gradient((logprobs.exp() * (logprobs - ref)).sum())
    for estimator, equal in (("k1", False), ("k2", True), ("k3", False)):
        logprobs = logits.log_softmax(0)
        kl = kl_estimate(logprobs, ref, estimator)  # type: ignore[arg-type]
        mean = gradient((logprobs.exp().detach() * kl).sum())  # over the policy's own samples
        assert torch.allclose(mean, exact, atol=1e-6) is equal


ADVANTAGES = st.floats(-3, 3, width=32)


@given(st.lists(st.tuples(ADVANTAGES, st.booleans()), min_size=1, max_size=6))
def test_at_the_policy_that_sampled_every_rule_is_the_policy_gradient(
    tokens: list[tuple[float, bool]],
) -> None:
    advantage = torch.full((1, len(tokens)), tokens[0][0])
    mask = torch.tensor([[own for _, own in tokens]])
    logprobs = torch.linspace(-2, -0.5, len(tokens))[None].requires_grad_()
    ratio = logprobs - logprobs.detach()
    length = mask.sum().clamp(min=1)
    rules = (
        clipped_surrogate(ratio, advantage, 0.2, 0.3)[0],
        clipped_surrogate(sequence_log_ratio(ratio, mask), advantage, 0.2, 0.3)[0],
        cispo_surrogate(logprobs, ratio, advantage, 1.0, 4.0)[0],
        geometric_surrogate(ratio, advantage, mask, 0.4, 0.4)[0],
        soft_gate_surrogate(ratio, advantage, 1.0, 1.05),
    )
    for per_token in rules:
        loss = (per_token.masked_fill(~mask, 0.0) / length).sum()
        (found,) = torch.autograd.grad(loss, logprobs, retain_graph=True)
        assert torch.allclose(found, -advantage * mask / length, atol=1e-5)


@given(st.lists(st.tuples(st.floats(-1, 1, width=32), st.booleans()), min_size=1, max_size=6))
def test_a_sequence_ratio_is_the_mean_of_its_own_tokens(tokens: list[tuple[float, bool]]) -> None:
    values, own = (torch.tensor([x]) for x in zip(*tokens, strict=True))
    found = sequence_log_ratio(values.masked_fill(~own, math.nan), own)
    mean = float(values[own].mean()) if bool(own.any()) else 0.0
    assert torch.allclose(found, torch.full_like(values, mean), atol=1e-6)


def test_value_loss_by_hand() -> None:
    values, old = torch.tensor([0.6, 0.1]), torch.tensor([0.2, 0.0])
    returns = torch.tensor([0.8, 1.0])
    assert torch.allclose(value_loss(values, old, returns, None), torch.tensor([0.02, 0.405]))
    # 0.6 may only move to 0.3, which is further off
    assert torch.allclose(value_loss(values, old, returns, 0.1), torch.tensor([0.125, 0.405]))
