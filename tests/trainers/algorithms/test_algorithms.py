"""What must hold of every rule: GRPO's numbers, splitting into portions, settings refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from doubles.two_rows import ROOT, batch, gradient, output, ready
from torch import Tensor

from research_rl.agents.policy.policy import LMPolicy
from research_rl.trainers.algorithms import (
    CISPO,
    DAPO,
    GMPO,
    GRPO,
    GSPO,
    LLDS,
    PPO,
    RLOO,
    SAPO,
    AdaptiveKL,
    Algorithm,
    Correction,
    DrGRPO,
    PolicyGradient,
    Reinforce,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    SearchAgentPO,
    TurnGRPO,
)
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.portions import PaddedCost, portions


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


def policy_gradient(policy: LMPolicy, rule: Algorithm, rows: Batch, size: int) -> Tensor:
    """The gradient of everything trainable, micro-batch by micro-batch."""
    policy.zero_grad()
    rule.zero_grad()
    for index in portions(rows, PaddedCost, size):
        part = rows[index].trim()
        out = policy(part.input_ids, part.attention_mask, hidden=rule.needs_values)
        rule.loss(out, part)[0].backward()
    trained = [*policy.parameters(), *rule.parameters()]
    return torch.cat([p.grad.flatten() for p in trained if p.grad is not None])


def ragged() -> Batch:
    """Eight rollouts of different lengths and turns, with old and reference log-probs."""
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
    rows.set_turn_rewards(torch.rand(8, 11, generator=generator).tolist())
    return rows


RULES: dict[str, Callable[[], PolicyGradient]] = {
    "grpo": GRPO,
    "grpo sequence-mean": lambda: GRPO(aggregation="sequence-mean", entropy_coef=0.01),
    "grpo fixed-length": lambda: GRPO(aggregation="fixed-length", fixed_length=20),
    "grpo abs in reward": lambda: GRPO(kl_coef=0.1, kl_estimator="abs", kl_in="reward"),
    "grpo truncated": lambda: GRPO(correction=Correction()),
    "grpo masked": lambda: GRPO(correction=Correction("mask", 0.9, 1.2)),
    "dr_grpo": lambda: DrGRPO(20),
    "dapo": lambda: DAPO(max_tokens=8, soft_tokens=6),
    "rloo": RLOO,
    "reinforce_pp": ReinforcePlusPlus,
    "reinforce_pp_baseline": ReinforcePlusPlusBaseline,
    "gspo": lambda: GSPO(0.2, 0.2),
    "cispo": CISPO,
    "gmpo": GMPO,
    "sapo": SAPO,
    "turns": TurnGRPO,
    "llds": LLDS,
    "search agent": SearchAgentPO,
    "reinforce": Reinforce,
    "ppo": lambda: PPO(train_trunk=True, gae_lambda=0.9),
}


@pytest.mark.parametrize("name", RULES)
def test_micro_batches_do_not_change_the_gradient(policy: LMPolicy, name: str) -> None:
    rule, rows = RULES[name](), ragged()
    torch.manual_seed(0)
    rule.bind(policy)
    for parameter in rule.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        out = policy(rows.input_ids, rows.attention_mask, hidden=True)
        noise = 0.3 * torch.randn(8, 11)
        rows.sampled_logprobs = out.logprobs + 0.3 * torch.randn(8, 11)
        rows.old_logprobs, rows.ref_logprobs = out.logprobs + noise, out.logprobs - noise
        rows.values = rule.values(out) + noise if rule.needs_values else None
        ready(rule, rows)
    whole = policy_gradient(policy, rule, rows, 8)
    assert float(whole.norm()) > 1e-2
    for size in (3, 1):
        split = policy_gradient(policy, rule, rows, size)
        assert float((split - whole).norm() / whole.norm()) < 1e-5


def test_turns_of_a_rollout_differ_by_their_credit() -> None:
    mask = [[True, False, True, True], [True, False, True, True]]
    rows = batch(mask, rewards=[1.0, 0.0], groups=[0, 0])
    rows.set_turn_rewards([[0.4, 0.0], [0.0, 0.0]])
    rule = TurnGRPO(turn_coef=0.5, turn_discount=0.5, normalize_turns=False, kl_coef=0.0)
    found = rule.advantages(rows)
    assert torch.allclose(found[0], torch.tensor([ROOT + 0.2, 0.0, ROOT, ROOT]), atol=1e-5)
    assert torch.allclose(found[1], -torch.tensor([ROOT, 0.0, ROOT, ROOT]), atol=1e-5)
    # four turns: 0.4, 0, 0, 0 have the mean 0.1 and the std 0.2
    found = TurnGRPO(turn_discount=0.5, kl_coef=0.0).advantages(rows)
    assert torch.allclose(found[0] - ROOT, torch.tensor([1.25, -ROOT, -0.5, -0.5]), atol=1e-4)
    assert torch.allclose(found[1] + ROOT, torch.tensor([-0.75, ROOT, -0.5, -0.5]), atol=1e-4)


def test_turns_without_a_credit_of_their_own_keep_that_of_the_outcome() -> None:
    """Of two rollouts that search and answer, the searches are compared and the answers are not."""
    mask = [[True, False, True, True], [True, False, True, True]]
    rows = batch(mask, rewards=[1.0, 1.0], groups=[0, 0])
    rows.set_turn_rewards([[0.4, None], [0.2, None]])
    found = TurnGRPO(kl_coef=0.0).advantages(rows)
    # the gains 0.4 and 0.2 have the mean 0.3 and the std 0.2 / sqrt 2
    assert torch.allclose(found[0], torch.tensor([ROOT, 0.0, 0.0, 0.0]), atol=1e-4)
    assert torch.allclose(found[1], -torch.tensor([ROOT, 0.0, 0.0, 0.0]), atol=1e-4)
    assert rows.turn_rewards is not None
    assert rows.turn_rewards.tolist() == [
        pytest.approx([0.4, 0.0, 0.0, 0.0]),
        pytest.approx([0.2, 0.0, 0.0, 0.0]),
    ]


def test_a_credit_that_is_no_number_is_refused(rows: Batch) -> None:
    """It would pass for a turn that is not valued otherwise."""
    rewards: list[list[float | None]] = [[0.0] * 9 for _ in range(len(rows))]
    rewards[1][0] = math.nan
    with pytest.raises(ValueError, match=r"rollout 1 .*got nan.*None"):
        rows.set_turn_rewards(rewards)


def test_turns_need_a_credit(rows: Batch) -> None:
    with pytest.raises(ValueError, match=r"turn rewards must be there.*set model\.credit"):
        TurnGRPO().advantages(rows)


@pytest.mark.parametrize("rule", [RLOO, ReinforcePlusPlusBaseline, GSPO])
def test_rules_that_compare_refuse_a_group_of_one(rule: Callable[[], Algorithm]) -> None:
    with pytest.raises(ValueError, match="group_size must be at least 2, got 1"):
        rule().advantages(batch([[True], [True]], [1.0, 0.0], [0, 1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GRPO(kl_in="prior"), "kl_in must be one of loss, reward"),  # type: ignore[arg-type]
        (lambda: DAPO(max_tokens=4, soft_tokens=5), "soft_tokens must lie between 1 and"),
        (lambda: DrGRPO(fixed_length=0), "fixed_length must be positive"),
        (lambda: GRPO(kl_coef=0.0, kl_control=AdaptiveKL(0.1)), "kl_coef must be positive"),
        (lambda: AdaptiveKL(target=0.0), r"kl_control\.target must be positive"),
        (lambda: Correction(low=3.0), r"correction\.low must lie between 0 and"),
        (lambda: Correction(kind="clip"), r"correction\.kind must be one of truncate, mask"),  # type: ignore[arg-type]
        (lambda: SAPO(tau_negative=0.0), "tau_negative must be positive"),
        (lambda: TurnGRPO(turn_coef=-1.0), "turn_coef must not be negative"),
    ],
)
def test_impossible_settings_of_the_others_are_refused(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make()
