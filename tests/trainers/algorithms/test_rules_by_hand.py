"""Each rule's loss and gradient against numbers worked out by hand."""

from __future__ import annotations

import math

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
    PPO,
    RLOO,
    SAPO,
    AdaptiveKL,
    Algorithm,
    Correction,
    DrGRPO,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
)
from research_rl.trainers.algorithms.batch import Batch


def values_of(rule: Algorithm, rows: Batch, logprobs: list[list[float]]) -> tuple[float, Tensor]:
    """The loss and its gradient with respect to the log-probs."""
    out = output(logprobs)
    loss, _ = rule.loss(out, rows)
    return loss.item(), gradient(loss, out.logprobs)


RATIOS = [[1.5, 0.9], [0.5, 1.0]]


@pytest.fixture
def moved(rows: Batch) -> Batch:
    """After an update: the ratios are RATIOS where the new log-probs are 0."""
    rows.old_logprobs = -torch.tensor(RATIOS).log()
    return rows


def test_dr_grpo_by_hand(rows: Batch) -> None:
    rule = DrGRPO(fixed_length=10)
    loss, grad = values_of(rule, ready(rule, rows), [[-1.0, -2.0], [-3.0, -4.0]])
    assert loss == pytest.approx(-0.5 / 20)  # advantages 0.5, 0.5 and -0.5; weights 1 / (10 * 2)
    assert torch.allclose(grad, torch.tensor([[-0.5, -0.5], [0.5, 0.0]]) / 20)


def test_dapo_clips_higher_and_punishes_length(moved: Batch) -> None:
    rule = DAPO()
    loss, _ = values_of(rule, ready(rule, moved), [[0.0, 0.0], [0.0, 0.0]])
    assert loss == pytest.approx(-(1.28 + 0.9 - 0.8) * ROOT / 3, abs=1e-5)
    # the first response has 2 tokens (its prompt is one), the second 2 as well: -1/4 each of 1..5
    rule = DAPO(max_tokens=5, soft_tokens=4)
    assert rule.rewards(moved).tolist() == [0.75, -0.25]
    moved.loss_mask[:, 0] = False  # now the prompts have two tokens
    assert rule.rewards(moved).tolist() == [1.0, 0.0]  # the second row has no response left


def test_rloo_by_hand(rows: Batch) -> None:
    rule = RLOO(kl_coef=0.0)
    loss, grad = values_of(rule, ready(rule, rows), [[-1.0, -2.0], [-3.0, -4.0]])
    assert loss == pytest.approx(-(1.0 + 1.0 - 1.0) / 2)  # 1 - 0 and 0 - 1, over two rollouts
    assert torch.allclose(grad, torch.tensor([[-0.5, -0.5], [0.5, 0.0]]))


def test_rloo_takes_the_kl_off_the_reward(rows: Batch) -> None:
    rows.sampled_logprobs = torch.tensor([[-1.0, -2.0], [-3.0, 9.0]])
    rows.ref_logprobs = torch.tensor([[-1.5, -2.0], [-1.0, 7.0]])
    rule = RLOO(kl_coef=0.1)
    assert torch.allclose(rule.rewards(rows), torch.tensor([1 - 0.05, 0.2]))
    assert torch.allclose(rule.advantages(rows), torch.tensor([0.75, -0.75]))
    loss, metrics = rule.loss(output([[-1.0, -2.0], [-3.0, 0.0]]), ready(rule, rows))
    assert loss.item() == pytest.approx(-0.75 / 2)
    assert metrics["kl"].item() == pytest.approx((0.5 + 0.0 - 2.0) / 2)  # weights of 1 / 2


def test_reinforce_pp_by_hand(rows: Batch) -> None:
    rule = ReinforcePlusPlus(kl_coef=0.0)
    found = rule.advantages(rows)  # 1, 1 and 0 over three tokens: mean 2/3, std sqrt(1/3)
    root = math.sqrt(1 / 3)
    assert torch.allclose(found, torch.tensor([[1 / 3, 1 / 3], [-2 / 3, 0.0]]) / root, atol=1e-5)


def test_reinforce_pp_pays_the_kl_at_each_token(rows: Batch) -> None:
    rows.ref_logprobs = torch.tensor([[-1.0, -2.0], [0.0, 5.0]])
    rule = ReinforcePlusPlus(kl_coef=0.1)
    returns = torch.tensor([1 - 0.1 - 0.2, 1 - 0.2, 0.0])  # k1 is 1 and 2, from each token on
    expected = (returns - returns.mean()) / returns.std()
    assert torch.allclose(rule.advantages(rows)[rows.loss_mask], expected, atol=1e-5)


def test_reinforce_pp_baseline_by_hand() -> None:
    rows = batch([[True, True], [True, False], [True, True]], [1.0, 0.0, 0.4], [0, 0, 1])
    found = ReinforcePlusPlusBaseline(kl_coef=0.0).advantages(rows)
    above = torch.tensor([0.5, 0.5, -0.5, 0.0, 0.0])  # the third is alone in its group
    expected = (above - 0.1) / above.std()
    assert torch.allclose(found[rows.loss_mask], expected, atol=1e-5)


def test_gspo_by_hand(moved: Batch) -> None:
    rule = GSPO(clip_low=0.2, clip_high=0.3)
    loss, grad = values_of(rule, ready(rule, moved), [[0.0, 0.0], [0.0, 0.0]])
    first = math.sqrt(1.5 * 0.9)  # within 1.3
    assert loss == pytest.approx(-(first - 0.8) * ROOT / 2, abs=1e-5)
    expected = torch.tensor([[-first * ROOT / 4, -first * ROOT / 4], [0.0, 0.0]])
    assert torch.allclose(grad, expected, atol=1e-5)


def test_cispo_by_hand(moved: Batch) -> None:
    rule = CISPO(clip_high=0.3)
    loss, grad = values_of(rule, ready(rule, moved), [[0.0, 0.0], [0.0, 0.0]])
    assert loss == 0.0  # log-probs are 0 here, the gradient is what counts
    expected = torch.tensor([[-1.3, -0.9], [0.5, 0.0]]) * ROOT / 3
    assert torch.allclose(grad, expected, atol=1e-5)


def test_gmpo_by_hand(moved: Batch) -> None:
    rule = GMPO()
    loss, grad = values_of(rule, ready(rule, moved), [[0.0, 0.0], [0.0, 0.0]])
    first = math.exp((0.4 + math.log(0.9)) / 2)  # log 1.5 is beyond 0.4
    second = math.exp(-0.4)  # log 0.5 is beyond -0.4
    assert loss == pytest.approx((second - first) * ROOT / 2, abs=1e-5)
    assert torch.allclose(grad, torch.tensor([[0.0, -first * ROOT / 4], [0.0, 0.0]]), atol=1e-5)


def test_sapo_by_hand(moved: Batch) -> None:
    rule = SAPO(tau_positive=1.0, tau_negative=2.0)
    loss, grad = values_of(rule, ready(rule, moved), [[0.0, 0.0], [0.0, 0.0]])

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    gates = (4 * sigmoid(0.5), 4 * sigmoid(-0.1), 2 * sigmoid(2 * -0.5))
    assert loss == pytest.approx(-((gates[0] + gates[1]) / 2 - gates[2]) * ROOT / 2, abs=1e-5)
    slope = 4 * sigmoid(0.5) * sigmoid(-0.5) * 1.5  # the gate's slope times the ratio
    assert float(grad[0, 0]) == pytest.approx(-slope * ROOT / 4, abs=1e-5)


def test_ppo_by_hand(rows: Batch) -> None:
    rule = PPO(gae_lambda=0.5, gamma=0.9, kl_coef=0.0, value_clip=0.1, value_coef=0.5)
    rows.values = torch.tensor([[0.2, 0.4], [0.5, 7.0]])
    ready(rule, rows)
    # last tokens: 1 - 0.4 = 0.6 and 0 - 0.5; before: 0.9 * 0.4 - 0.2 = 0.16, + 0.45 * 0.6 = 0.43
    found = torch.tensor([0.43, 0.6, -0.5])
    assert rows.returns is not None
    assert torch.allclose(rows.returns, torch.tensor([[0.63, 1.0], [0.0, 0.0]]))
    expected = (found - found.mean()) / found.std()
    assert torch.allclose(rows.advantages[rows.loss_mask], expected, atol=1e-5)
    rule.head = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(rule.head.weight)
    torch.nn.init.zeros_(rule.head.bias)
    out = output([[0.0, 0.0], [0.0, 0.0]])
    out.hidden = torch.tensor([[[0.6], [0.5]], [[0.4], [0.0]]])
    loss, metrics = rule.loss(out, rows)
    # 0.6 is clipped to 0.3, further off than plain: (0.33)^2; 0.5^2; 0.4^2; all halved
    critic = (0.33**2 + 0.5**2 + 0.4**2) / 2 / 3
    assert metrics["value_loss"].item() == pytest.approx(critic)
    assert loss.item() == pytest.approx(0.5 * critic - expected.sum().item() / 3, abs=1e-5)


def test_the_critic_may_learn_alone_at_first(rows: Batch, policy: LMPolicy) -> None:
    rule = PPO(kl_coef=0.0, critic_warmup=1)
    rule.bind(policy)
    assert rule.head.in_features == 32
    rows.values = torch.zeros(2, 2)
    ready(rule, rows)
    for silent in (True, False):
        out = output([[-1.0, -2.0], [-3.0, -4.0]])
        out.hidden = torch.ones(2, 2, 32)
        loss, _ = rule.loss(out, rows)
        found = torch.autograd.grad(loss, [out.logprobs, rule.head.bias])
        assert bool((found[0] == 0).all()) is silent
        assert float(found[1]) != 0
        rule.after_update({})


def test_the_kl_coefficient_follows_its_target(rows: Batch) -> None:
    rule = GRPO(kl_coef=0.1, kl_control=AdaptiveKL(target=0.5, gain=0.1))
    rule.after_update({"kl": torch.tensor(5.0)})  # far above: at most 20 percent of the gain
    assert float(rule.kl_scale) == pytest.approx(1.02)
    rule.after_update({"kl": torch.tensor(math.nan)})  # no token was left to learn from
    rule.after_update({"kl": torch.tensor(0.45)})
    assert float(rule.kl_scale) == pytest.approx(1.02 * 0.99)
    resumed = GRPO(kl_coef=0.1, kl_control=AdaptiveKL(target=0.5, gain=0.1))
    resumed.load_state_dict(rule.state_dict())
    assert float(resumed.kl_scale) == float(rule.kl_scale)
    rows.ref_logprobs = torch.full((2, 2), -1.0)
    _, metrics = resumed.loss(output([[0.0, 0.0], [0.0, 0.0]]), ready(resumed, rows))
    assert metrics["kl_coef"].item() == pytest.approx(0.1 * 1.02 * 0.99)
    assert not GRPO().state_dict()  # a fixed one stays what the configuration says


def test_a_sampler_that_differs_is_corrected_by_hand(rows: Batch) -> None:
    rows.sampled_logprobs = torch.log(torch.tensor([[0.2, 0.5], [0.9, 3.0]]))
    now = torch.log(torch.tensor([[0.6, 0.5], [0.3, 1.0]])).tolist()  # ratios 3, 1 and 1/3
    for correction, factors, cut in (
        (Correction(high=2.0), (2.0, 1.0, 1 / 3), 1 / 3),
        (Correction("mask", low=0.5, high=5.0), (3.0, 1.0, 0.0), 1 / 3),
    ):
        rule = GRPO(kl_coef=0.0, correction=correction)
        loss, metrics = rule.loss(output(now), ready(rule, rows))
        expected = -(factors[0] + factors[1] - factors[2]) * ROOT / 3
        assert loss.item() == pytest.approx(expected, abs=1e-5)
        assert metrics["corrected"].item() == pytest.approx(cut)
