"""LLDS, Search Agent PO and REINFORCE against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from research_rl.agents.policy.policy import PolicyOutput
from research_rl.trainers.algorithms import (
    GRPO,
    LLDS,
    Algorithm,
    Batch,
    Reinforce,
    SearchAgentPO,
)
from research_rl.trainers.algorithms.losses import conditional_kl, fallen_likelihood

# two turns of two tokens each, and what is between them
MASK = torch.tensor([[True, True, False, True, True]])
TURNS = torch.tensor([[0, 0, -1, 1, 1]])
RATIOS = torch.tensor([[0.5, 4.0, 1.0, 0.5, 1.2]])
LN2 = math.log(2)


def test_only_tokens_that_fell_in_a_turn_that_fell() -> None:
    """Turn 0 rose (0.5 * 4), turn 1 fell (0.5 * 1.2): of it the first token fell by ln 2."""
    log_ratio = RATIOS.log().requires_grad_()
    found = fallen_likelihood(log_ratio, torch.ones(1, 5), TURNS)
    assert found.tolist()[0] == pytest.approx([0, 0, 0, LN2, 0])
    (grad,) = torch.autograd.grad(found.sum(), log_ratio)
    assert grad.tolist() == [[0, 0, 0, -1, 0]]


def test_wrong_rollouts_are_not_held_and_even_ones_are() -> None:
    log_ratio = torch.full((3, 5), -1.0)
    advantages = torch.tensor([[-1.0], [0.0], [1.0]]).expand(3, 5)
    found = fallen_likelihood(log_ratio, advantages, TURNS.expand(3, 5))
    assert found.sum(1).tolist() == [0.0, 4.0, 4.0]


def test_before_the_first_update_nothing_has_a_gradient() -> None:
    log_ratio = torch.zeros(1, 5, requires_grad=True)
    found = fallen_likelihood(log_ratio, torch.ones(1, 5), TURNS)
    assert torch.autograd.grad(found.sum(), log_ratio)[0].abs().sum() == 0


def test_what_is_not_the_policys_own_may_be_anything() -> None:
    log_ratio = RATIOS.log().masked_fill(~MASK, math.nan)
    assert fallen_likelihood(log_ratio, torch.ones(1, 5), TURNS).isfinite().all()


def test_the_conditional_kl() -> None:
    """Of ratios 0.5, 0.9 and 1.5 the first is below 0.8; with a negative advantage none counts."""
    log_ratio = torch.tensor([[0.5, 0.9, 1.5], [0.5, 0.9, 1.5]]).log()
    advantages = torch.tensor([[1.0], [-1.0]]).expand(2, 3)
    found = conditional_kl(log_ratio, advantages, 0.8)
    assert torch.allclose(found, torch.tensor([[LN2, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def batch(rewards: list[float], groups: list[int]) -> Batch:
    rows = len(rewards)
    return Batch(
        input_ids=torch.zeros(rows, 6, dtype=torch.long),
        attention_mask=torch.ones(rows, 6, dtype=torch.bool),
        loss_mask=MASK.repeat(rows, 1),
        sampled_logprobs=torch.zeros(rows, 5),
        rewards=torch.tensor(rewards),
        groups=torch.tensor(groups),
    )


def loss_of(rule: Algorithm, rows: Batch) -> float:
    rows.advantages = rule.advantages(rows)[:, None] * rows.loss_mask
    rows.weights = rule.weights(rows)
    logprobs = torch.zeros(len(rows), 5, requires_grad=True)
    loss, _ = rule.loss(PolicyOutput(logprobs, torch.zeros_like(logprobs), None), rows)
    return float(loss)


@pytest.mark.parametrize(
    ("rule", "held"),
    # the right rollout holds one token of eight; with the KL all of its tokens below 0.8: two
    [(LLDS(0.1, kl_coef=0.0), LN2 / 8), (SearchAgentPO(0.1, kl_coef=0.0), 2 * LN2 / 8)],
)
def test_the_loss_is_that_of_grpo_and_what_is_held(rule: Algorithm, held: float) -> None:
    rows = batch([1.0, 0.0], [0, 0])
    rows.old_logprobs = -RATIOS.log().repeat(2, 1)
    plain = loss_of(GRPO(kl_coef=0.0), rows)
    assert loss_of(rule, rows) == pytest.approx(plain + 0.1 * held, abs=1e-6)
    rows.old_logprobs = None
    assert loss_of(rule, rows) == pytest.approx(loss_of(GRPO(kl_coef=0.0), rows), abs=1e-7)


def test_groups_of_equal_rewards_are_held_after_the_first_update() -> None:
    rule, rows = LLDS(kl_coef=0.0), batch([1.0, 1.0], [0, 0])
    loss_of(rule, rows)
    assert rule.active(rows).tolist() == [False, False]
    rows.old_logprobs = torch.zeros(2, 5)
    assert rule.active(rows).tolist() == [True, True]


def test_reinforce_by_hand() -> None:
    rule = Reinforce(kl_coef=0.0)
    rows = batch([1.0, 0.0, 0.0, 0.2], [0, 0, 1, 1])
    assert rule.advantages(rows).tolist() == pytest.approx([0.7, -0.3, -0.3, -0.1])
    lone = batch([1.0, 0.0], [0, 1])
    assert rule.advantages(lone).tolist() == [0.5, -0.5], "groups of one are enough"


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, math.nan])
def test_a_threshold_that_makes_no_sense_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must lie"):
        SearchAgentPO(threshold=threshold)
