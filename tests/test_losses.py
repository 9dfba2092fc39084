"""The formulas of the loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from research_rl.trainers.losses import clipped_surrogate, kl_estimate, token_weights


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", [0.5, -1.0]), ("k2", [0.125, 0.5]), ("k3", [math.exp(-0.5) - 0.5, math.e - 2])],
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
    [("token-mean", 1 / 4, 1 / 4), ("sequence-mean", 1 / 6, 1 / 2), ("fixed-length", 0.05, 0.05)],
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
