"""Our losses and advantages beside those of TRL and verl, run as they are, on random tensors.

TRL's part needs ``pip install trl==1.16.0`` and is skipped without. verl's part reads
``verl/trainer/ppo/core_algos.py`` of a clone of https://github.com/volcengine/verl whose folder
``RESEARCH_VERL`` names; what that file imports and does not compute with is stubbed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from research_rl.agents.policy.policy import PolicyOutput
from research_rl.trainers.algorithms import (
    CISPO,
    DAPO,
    GMPO,
    GRPO,
    GSPO,
    SAPO,
    AdaptiveKL,
    Correction,
    DrGRPO,
    PolicyGradient,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
)
from research_rl.trainers.algorithms.advantages import (
    gae,
    group_advantages,
    leave_one_out_advantages,
    whiten,
)
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.algorithms.losses import kl_estimate, mismatch_weights, value_loss

ROWS, WIDTH, BUDGET = 6, 9, 20
KL = 0.05
OUTCOME = tuple[Tensor, Tensor]


@pytest.fixture(params=[0, 1, 2])
def rows(request: pytest.FixtureRequest) -> Batch:
    """Random rollouts after an update, some ratios beyond every clip, gaps in every mask."""
    generator = torch.Generator().manual_seed(request.param)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(ROWS, WIDTH, generator=generator)

    mask = torch.rand(ROWS, WIDTH, generator=generator) < 0.7
    mask[:, 0] = True
    found = Batch(
        input_ids=torch.zeros(ROWS, WIDTH + 1, dtype=torch.long),
        attention_mask=torch.ones(ROWS, WIDTH + 1, dtype=torch.bool),
        loss_mask=mask,
        sampled_logprobs=torch.zeros(ROWS, WIDTH),
        rewards=torch.rand(ROWS, generator=generator),
        groups=torch.arange(ROWS) // 3,
    )
    now = -torch.rand(ROWS, WIDTH, generator=generator)
    found.values = normal(1.0)  # a place to keep what the policy says now
    found.old_logprobs = now + normal(0.4)
    found.ref_logprobs = now + normal(0.4)
    found.sampled_logprobs = found.old_logprobs + normal(0.5)
    found.returns = now
    return found


def ours(rule: PolicyGradient, rows: Batch) -> OUTCOME:
    """Our loss and its gradient with respect to the log-probs, (B, T)."""
    found = rule.advantages(rows)
    rows.advantages = (found[:, None] if found.ndim == 1 else found) * rows.loss_mask
    rows.weights = rule.weights(rows)
    assert rows.returns is not None
    logprobs = rows.returns.clone().requires_grad_()
    loss, _ = rule.loss(PolicyOutput(logprobs, None, None), rows)
    return loss.detach(), torch.autograd.grad(loss, logprobs)[0]


def assert_same(one: OUTCOME, other: OUTCOME) -> None:
    assert torch.allclose(one[0], other[0], atol=1e-6)
    assert torch.allclose(one[1], other[1], atol=1e-6)
    assert float(one[1].abs().max()) > 1e-3


def trl_loss(rows: Batch, loss_type: str, **settings: Any) -> OUTCOME:
    """What GRPOTrainer._compute_loss returns, given our log-probs in place of a model's."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    assert rows.returns is not None
    logprobs = rows.returns.clone().requires_grad_()
    correction = settings.pop("correction", None)
    args = SimpleNamespace(
        delta=None,
        use_bias_correction_kl=False,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        steps_per_generation=1,
    )
    fake = MagicMock(
        args=args,
        loss_type=loss_type,
        beta=settings.pop("beta", 0.0),
        epsilon_low=settings.pop("epsilon_low", 0.2),
        epsilon_high=settings.pop("epsilon_high", 0.2),
        importance_sampling_level=settings.pop("level", "token"),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=correction is not None,
        vllm_importance_sampling_correction=correction is not None,
        current_gradient_accumulation_steps=1,
        max_completion_length=BUDGET,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
    )
    assert not settings, settings
    fake._get_per_token_logps_and_entropies.return_value = (
        logprobs,
        torch.zeros(ROWS, WIDTH),
        None,
    )
    inputs = {
        "prompt_ids": torch.zeros(ROWS, 1, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 1, dtype=torch.long),
        "completion_ids": torch.zeros(ROWS, WIDTH, dtype=torch.long),
        "completion_mask": torch.ones(ROWS, WIDTH, dtype=torch.long),
        "tool_mask": rows.loss_mask.long(),
        "advantages": rows.advantages[:, 0],
        "old_per_token_logps": rows.old_logprobs,
        "ref_per_token_logps": rows.ref_logprobs,
        "num_items_in_batch": rows.loss_mask.sum(),
        "importance_sampling_ratio": correction,
    }
    loss = trainer._compute_loss(fake, MagicMock(training=True), inputs)
    return loss.detach(), torch.autograd.grad(loss, logprobs)[0]


TRL: dict[str, tuple[PolicyGradient, str, dict[str, Any]]] = {
    "grpo": (GRPO(kl_coef=KL, aggregation="sequence-mean"), "grpo", {"beta": KL}),
    "bnpo": (GRPO(kl_coef=0.0), "bnpo", {}),
    "dr_grpo": (DrGRPO(BUDGET), "dr_grpo", {}),
    "dapo": (DAPO(), "dapo", {"epsilon_high": 0.28}),
    "cispo": (CISPO(clip_high=0.3), "cispo", {"epsilon_high": 1.3}),
    "sapo": (SAPO(), "sapo", {}),
    "gspo": (
        GSPO(clip_low=0.1, clip_high=0.2),
        "grpo",
        {"level": "sequence", "epsilon_low": 0.1},
    ),
}


@pytest.mark.parametrize("name", TRL)
def test_trl(name: str, rows: Batch) -> None:
    pytest.importorskip("trl")
    rule, loss_type, settings = TRL[name]
    assert_same(ours(rule, rows), trl_loss(rows, loss_type, **settings))


@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_trl_with_a_correction(kind: Any, rows: Batch) -> None:
    pytest.importorskip("trl")
    rule = GRPO(kl_coef=0.0, correction=Correction(kind, low=0.0, high=1.3))
    found = ours(rule, rows)
    assert rows.old_logprobs is not None
    ratio = (rows.old_logprobs - rows.sampled_logprobs).exp()
    kept = ratio.clamp(max=1.3) if kind == "truncate" else ratio.masked_fill(ratio > 1.3, 0.0)
    assert_same(found, trl_loss(rows, "bnpo", correction=kept))


@pytest.fixture(scope="module")
def verl() -> ModuleType:
    """core_algos.py of a clone, with stubs for all that it does not compute with."""
    folder = os.environ.get("RESEARCH_VERL")
    if not folder:
        pytest.skip("RESEARCH_VERL must name a clone of verl")
    root = Path(folder)
    stubs: dict[str, Any] = {
        "verl": ModuleType("verl"),
        "verl.utils": ModuleType("verl.utils"),
        "verl.utils.device": MagicMock(),
        "tensordict": MagicMock(),
        "verl.trainer.config": SimpleNamespace(AlgoConfig=type("AlgoConfig", (), {})),
        "verl.workers.config": SimpleNamespace(ActorConfig=_ActorConfig),
        "verl.utils.import_utils": SimpleNamespace(deprecated=lambda name: lambda f: f),
    }
    stubs["verl.utils"].as_torch_index = stubs["verl.utils"].group_mean_std = None
    before = {name: sys.modules.get(name) for name in [*stubs, "verl.utils.torch_functional"]}
    sys.modules.update(stubs)
    try:
        functional = _load("verl.utils.torch_functional", root / "verl/utils/torch_functional.py")
        stubs["verl.utils"].torch_functional = functional
        return _load("verl_core_algos", root / "verl/trainer/ppo/core_algos.py")
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


class _ActorConfig(SimpleNamespace):
    """The settings that verl's losses read."""

    def get(self, name: str, default: Any) -> Any:
        return getattr(self, name, default)


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def verl_loss(
    verl: ModuleType,
    rows: Batch,
    name: str,
    how: str,
    low: float = 0.2,
    high: float = 0.2,
    weights: Tensor | None = None,
) -> OUTCOME:
    """A policy loss of verl and its gradient; its dual clip is set out of reach."""
    assert rows.returns is not None
    logprobs = rows.returns.clone().requires_grad_()
    config = _ActorConfig(
        clip_ratio=low,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=1e6,
        tau_pos=1.0,
        tau_neg=1.05,
        global_batch_info={},
    )
    loss, _ = verl.get_policy_loss_fn(name)(
        old_log_prob=rows.old_logprobs,
        log_prob=logprobs,
        advantages=rows.advantages,
        response_mask=rows.loss_mask.float(),
        loss_agg_mode=how,
        config=config,
        rollout_is_weights=weights,
    )
    return loss.detach(), torch.autograd.grad(loss, logprobs)[0]


VERL: dict[str, tuple[PolicyGradient, tuple[Any, ...]]] = {
    "ppo": (GRPO(kl_coef=0.0), ("vanilla", "token-mean")),
    "grpo": (GRPO(kl_coef=0.0, aggregation="sequence-mean"), ("vanilla", "seq-mean-token-mean")),
    "rloo": (
        GRPO(kl_coef=0.0, aggregation="sequence-sum"),
        ("vanilla", "seq-mean-token-sum"),
    ),
    "dapo": (DAPO(), ("vanilla", "token-mean", 0.2, 0.28)),
    "gspo": (GSPO(0.1, 0.2), ("gspo", "seq-mean-token-mean", 0.1, 0.2)),
    "cispo": (CISPO(0.2, 0.3), ("cispo", "token-mean", 0.2, 0.3)),
    "gmpo": (GMPO(), ("geo_mean", "unused", 0.4, 0.4)),
    "sapo": (SAPO(), ("sapo", "seq-mean-token-mean")),
}


@pytest.mark.parametrize("name", VERL)
def test_verl_losses(name: str, rows: Batch, verl: ModuleType) -> None:
    rule, arguments = VERL[name]
    assert_same(ours(rule, rows), verl_loss(verl, rows, *arguments))


def test_verl_with_a_correction(rows: Batch, verl: ModuleType) -> None:
    found = ours(GRPO(kl_coef=0.0, correction=Correction(high=1.3)), rows)
    assert rows.old_logprobs is not None
    weights, _ = mismatch_weights(rows.old_logprobs - rows.sampled_logprobs, "truncate", 0.0, 1.3)
    assert_same(found, verl_loss(verl, rows, "vanilla", "token-mean", weights=weights))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "rf++", "rf++ baseline"])
def test_verl_advantages(name: str, rows: Batch, verl: ModuleType) -> None:
    mask = rows.loss_mask.float()
    scores = torch.zeros(ROWS, WIDTH)
    scores[:, 0] = rows.rewards  # verl sums over a row, whether or not a token is the policy's own
    last = mask.cumsum(1).argmax(1)
    at_end = torch.zeros(ROWS, WIDTH).scatter(1, last[:, None], rows.rewards[:, None])
    index = rows.groups.numpy()
    estimators: dict[str, tuple[Callable[[], Tensor], Callable[[], Any]]] = {
        "grpo": (
            lambda: group_advantages(rows.rewards, rows.groups)[:, None] * mask,
            lambda: verl.compute_grpo_outcome_advantage(scores, mask, index),
        ),
        "dr_grpo": (
            lambda: group_advantages(rows.rewards, rows.groups, scale_by_std=False)[:, None] * mask,
            lambda: verl.compute_grpo_outcome_advantage(
                scores, mask, index, norm_adv_by_std_in_grpo=False
            ),
        ),
        "rloo": (
            lambda: leave_one_out_advantages(rows.rewards, rows.groups)[:, None] * mask,
            lambda: verl.compute_rloo_outcome_advantage(scores, mask, index),
        ),
        "rf++": (
            lambda: ReinforcePlusPlus(kl_coef=0.0).advantages(rows),
            lambda: verl.compute_reinforce_plus_plus_outcome_advantage(
                at_end, torch.ones_like(mask), SimpleNamespace(gamma=1.0)
            ),
        ),
        "rf++ baseline": (
            lambda: ReinforcePlusPlusBaseline(kl_coef=0.0).advantages(rows),
            lambda: verl.compute_reinforce_plus_plus_baseline_outcome_advantage(
                scores, mask, index
            ),
        ),
    }
    if name == "rf++":  # verl forgets the reward at a gap, which is what search results are
        rows.loss_mask[:] = True
        rows.__post_init__()
        at_end.zero_()
        at_end[:, -1] = rows.rewards
    mine, theirs = estimators[name]
    assert torch.allclose(mine(), theirs()[0], atol=1e-4)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.95, 0.9)])
def test_verl_gae_and_critic(rows: Batch, verl: ModuleType, gamma: float, lam: float) -> None:
    mask = rows.loss_mask
    assert rows.values is not None
    rewards = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(7)) * mask
    found, returns = gae(rewards, rows.values, mask, gamma, lam)
    theirs, their_returns = verl.compute_gae_advantage_return(
        rewards, rows.values, mask.float(), gamma, lam
    )
    assert torch.allclose(whiten(found, mask), theirs * mask, atol=1e-4)
    assert torch.allclose(returns, their_returns * mask, atol=1e-5)
    moved = rows.values + 0.3
    mine = (value_loss(moved, rows.values, returns, 0.2) * mask).sum() / mask.sum()
    other, _ = verl.compute_value_loss(moved, their_returns, rows.values, mask.float(), 0.2)
    assert torch.allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
def test_verl_kl(rows: Batch, verl: ModuleType, estimator: Any) -> None:
    assert rows.ref_logprobs is not None
    assert rows.returns is not None
    mine = kl_estimate(rows.returns, rows.ref_logprobs, estimator)
    assert torch.allclose(mine, verl.kl_penalty(rows.returns, rows.ref_logprobs, estimator))


def test_verl_adaptive_kl(verl: ModuleType) -> None:
    rule = GRPO(kl_coef=0.1, kl_control=AdaptiveKL(target=0.02, gain=0.1))
    theirs = verl.AdaptiveKLController(0.1, 0.02, horizon=10)
    for kl in (0.5, 0.021, 0.0, 0.018):
        rule.after_update({"kl": torch.tensor(kl)})
        theirs.update(kl, n_steps=1)
        assert rule.kl_coef * float(rule.kl_scale) == pytest.approx(theirs.value)
