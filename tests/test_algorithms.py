"""GRPO's loss and gradient against numbers worked out by hand, and against splitting."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from research_rl.agents.policy import LMPolicy, PolicyOutput
from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.types import Batch


def batch(mask: list[list[bool]], rewards: list[float], groups: list[int]) -> Batch:
    """A batch whose tokens do not matter."""
    loss_mask = torch.tensor(mask)
    rows, width = loss_mask.shape
    return Batch(
        input_ids=torch.zeros(rows, width + 1, dtype=torch.long),
        attention_mask=torch.ones(rows, width + 1, dtype=torch.bool),
        loss_mask=loss_mask,
        sampled_logprobs=torch.zeros(rows, width),
        rewards=torch.tensor(rewards),
        groups=torch.tensor(groups),
    )


def ready(rule: GRPO, rows: Batch) -> Batch:
    """Set what the trainer sets before a loss."""
    rows.advantages = rule.advantages(rows)[:, None] * rows.loss_mask
    rows.weights = rule.weights(rows)
    return rows


@pytest.fixture
def rows() -> Batch:
    return batch([[True, True], [True, False]], rewards=[1.0, 0.0], groups=[0, 0])


def output(values: list[list[float]], entropy: float = 0.5) -> PolicyOutput:
    logprobs = torch.tensor(values, requires_grad=True)
    return PolicyOutput(logprobs, torch.full_like(logprobs, entropy, requires_grad=True), None)


def gradient(loss: Tensor, out: Tensor | None) -> Tensor:
    assert out is not None
    found = torch.autograd.grad(loss, out)[0]
    return found


ROOT = math.sqrt(0.5)  # both rewards are 0.5 from their mean and their unbiased std is sqrt(0.5)


def test_first_update_is_the_policy_gradient(rows: Batch) -> None:
    rule = GRPO(kl_coef=0.0)
    out = output([[-1.0, -2.0], [-3.0, -4.0]])
    loss, metrics = rule.loss(out, ready(rule, rows))
    assert float(loss) == pytest.approx(-ROOT / 3, abs=1e-5)  # advantages + + -, three tokens
    expected = torch.tensor([[-ROOT, -ROOT], [ROOT, 0.0]]) / 3
    assert torch.allclose(gradient(loss, out.logprobs), expected, atol=1e-5)
    assert float(metrics["clip_frac"]) == 0.0
    assert float(metrics["entropy"]) == pytest.approx(0.5)


def test_later_updates_are_clipped(rows: Batch) -> None:
    rule = GRPO(kl_coef=0.0, clip_low=0.2, clip_high=0.3)
    out = output([[0.0, 0.0], [0.0, 0.0]])
    rows.old_logprobs = -torch.tensor([[1.5, 0.9], [0.5, 1.0]]).log()
    loss, metrics = rule.loss(out, ready(rule, rows))
    assert float(loss) == pytest.approx(-(1.3 + 0.9 - 0.8) * ROOT / 3, abs=1e-5)
    expected = torch.tensor([[0.0, -0.9 * ROOT / 3], [0.0, 0.0]])
    assert torch.allclose(gradient(loss, out.logprobs), expected, atol=1e-5)
    assert float(metrics["clip_frac"]) == pytest.approx(2 / 3)


def test_kl_and_entropy_add_up(rows: Batch) -> None:
    plain = GRPO(kl_coef=0.0)
    out = output([[-1.0, -2.0], [-3.0, -4.0]])
    base, _ = plain.loss(out, ready(plain, rows))
    rule = GRPO(kl_coef=0.1, kl_estimator="k2", entropy_coef=0.01)
    rows.ref_logprobs = out.logprobs.detach() + 2.0
    loss, metrics = rule.loss(out, ready(rule, rows))
    assert float(metrics["kl"]) == pytest.approx(2.0)
    assert float(loss - base) == pytest.approx(0.1 * 2.0 - 0.01 * 0.5, abs=1e-6)
    expected = -0.01 * rows.loss_mask / 3
    assert torch.allclose(gradient(loss, out.entropy), expected)


@pytest.mark.parametrize("fill", [math.nan, math.inf])
def test_what_is_not_the_policys_own_does_not_matter(rows: Batch, fill: float) -> None:
    rule = GRPO(kl_coef=0.1, entropy_coef=0.1)
    rows.ref_logprobs = torch.zeros(2, 2)
    clean, _ = rule.loss(output([[-1.0, -2.0], [-3.0, 0.0]]), ready(rule, rows))
    out = output([[-1.0, -2.0], [-3.0, fill]])
    loss, metrics = rule.loss(out, rows)
    assert torch.equal(loss, clean)
    assert all(bool(value.isfinite()) for value in metrics.values())


def test_rows_without_an_advantage_are_left_out_only_where_nothing_else_counts() -> None:
    same = batch([[True], [True], [True], [True]], [0.1, 0.1, 1.0, 0.0], [0, 0, 1, 1])
    rule = GRPO(kl_coef=0.0)
    assert rule.active(ready(rule, same)).tolist() == [False, False, True, True]
    for rule in (GRPO(kl_coef=0.1), GRPO(kl_coef=0.0, entropy_coef=0.1)):
        assert rule.active(ready(rule, same)).tolist() == [True] * 4


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size must be at least 2, got 1"):
        GRPO().advantages(batch([[True], [True]], [1.0, 0.0], [0, 1]))


def test_only_a_kl_needs_a_reference() -> None:
    assert GRPO().needs_reference
    assert not GRPO(kl_coef=0.0).needs_reference


def test_only_a_bonus_needs_the_gradient_of_the_entropy() -> None:
    assert not GRPO().entropy_gradient
    assert GRPO(entropy_coef=0.01).entropy_gradient


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_low": -1.0}, "clip_low must be positive, got -1.0"),
        ({"clip_high": 0.0}, "clip_high must be positive, got 0.0"),
        ({"kl_coef": -0.1}, "kl_coef must not be negative, got -0.1"),
        ({"entropy_coef": math.nan}, "entropy_coef must not be negative, got nan"),
        ({"kl_estimator": "k4"}, "kl_estimator must be one of k1, k2, k3, abs, got 'k4'"),
        ({"aggregation": "mean"}, "aggregation must be one of token-mean, .*got 'mean'"),
        ({"aggregation": "fixed-length"}, "fixed_length must be positive"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPO(**arguments)


@pytest.fixture(scope="module")
def policy() -> LMPolicy:
    return tiny.policy()


def policy_gradient(policy: LMPolicy, rule: GRPO, rows: Batch, size: int) -> Tensor:
    policy.zero_grad()
    for index in rows.micro_batches(size):
        part = rows[index].trim()
        rule.loss(policy(part.input_ids, part.attention_mask), part)[0].backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "fixed-length"])
def test_micro_batches_do_not_change_the_gradient(policy: LMPolicy, aggregation: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([12, 5, 9, 7, 12, 3, 10, 4])
    attention = torch.arange(12) < lengths[:, None]
    rows = Batch(
        input_ids=torch.randint(5, 200, (8, 12), generator=generator),
        attention_mask=attention,
        loss_mask=attention[:, 1:] & (torch.rand(8, 11, generator=generator) < 0.7),
        sampled_logprobs=torch.zeros(8, 11),
        rewards=torch.rand(8, generator=generator),
        groups=torch.arange(8) // 4,
    )
    rule = GRPO(kl_coef=0.1, entropy_coef=0.01, aggregation=aggregation, fixed_length=20)
    with torch.no_grad():
        logprobs = policy(rows.input_ids, rows.attention_mask).logprobs
    noise = 0.3 * torch.randn(8, 11, generator=generator)
    rows.old_logprobs, rows.ref_logprobs = logprobs + noise, logprobs - noise
    ready(rule, rows)
    whole = policy_gradient(policy, rule, rows, 8)
    assert float(whole.norm()) > 1e-2
    for size in (3, 1):
        assert torch.allclose(policy_gradient(policy, rule, rows, size), whole, atol=1e-6)
