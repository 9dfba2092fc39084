"""Each rule's loss and gradient against numbers worked out by hand, and against splitting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from doubles import tiny
from torch import Tensor

from research_rl.agents.policy.policy import LMPolicy, PolicyOutput
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


def ready(rule: Algorithm, rows: Batch) -> Batch:
    """Set what the trainer sets before a loss."""
    found = rule.advantages(rows)
    rows.advantages = (found[:, None] if found.ndim == 1 else found) * rows.loss_mask
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
