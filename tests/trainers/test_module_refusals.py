"""A run that cannot go on, or that could not learn, is refused in words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles.training import Data, module, start, trainer, weights
from torch import Tensor

from research_rl.agents.policy.loading import PolicyConfig
from research_rl.agents.policy.policy import PolicyOutput
from research_rl.agents.types import SamplingParams
from research_rl.trainers.algorithms import GRPO, PPO
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.module import ReSearchModule
from research_rl.trainers.sampler import check_precision
from research_rl.trainers.settings.errors import is_users_mistake
from research_rl.trainers.settings.options import Updates


class Broken(GRPO):
    """A loss that is not a number."""

    def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return NaN."""
        return out.logprobs.sum() * math.nan, {}


class Steep(GRPO):
    """A finite loss whose gradient is not."""

    def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return 0 with an infinite slope."""
        return (out.logprobs.sum() * 0).abs().sqrt(), {}


@pytest.mark.parametrize(("rule", "name"), [(Broken(), "loss"), (Steep(), "grad_norm")])
def test_a_loss_that_is_not_finite_stops_the_run(
    rule: GRPO, name: str, policy: Path, tmp_path: Path
) -> None:
    fresh = module(policy, algorithm=rule)
    with pytest.raises(
        FloatingPointError, match=f"train/{name} must be finite, got .* iteration 0"
    ) as found:
        trainer(tmp_path, limit_val_batches=0).fit(fresh, Data())
    assert is_users_mistake(found.value)  # one line, no traceback
    assert torch.equal(weights(fresh), weights(start(policy, tmp_path)))


def test_greedy_training_is_refused(policy: Path) -> None:
    with pytest.raises(ValueError, match=r"temperature must be positive in training, got 0\.0"):
        module(policy, sampling=SamplingParams(temperature=0.0))


def test_sampling_that_cannot_be_learned_from_is_refused(policy: Path) -> None:
    with pytest.raises(ValueError, match=r"top_p must be 1\.0 in training, got 0\.9"):
        module(policy, sampling=SamplingParams(top_p=0.9))


def test_what_cannot_be_learned_is_refused_before_anything_is_sampled(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="group_size must be at least 2 with GRPO, got 1"):
        module(policy, updates=Updates(1))
    module(policy, updates=Updates(1), algorithm=PPO())
    fresh = module(policy, updates=Updates(4, num_minibatches=9))
    monkeypatch.setattr(fresh, "_play", None)
    with pytest.raises(ValueError, match="num_minibatches must be at most 8, the number of roll"):
        trainer(tmp_path, limit_val_batches=0).fit(fresh, Data())


def test_half_precision_modules_are_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"set model\.policy\.dtype"):
        trainer(tmp_path, precision="bf16-true").fit(module(policy), Data())


def test_a_precision_that_scales_too_late_is_refused() -> None:
    # Lightning itself turns it into bf16-mixed on a CPU, so that a fit does not show it here
    with pytest.raises(
        ValueError, match=r"not be 16-mixed.* model\.updates\.compute_dtype to float16"
    ):
        check_precision("16-mixed")


def test_a_scheduler_that_wants_a_metric_is_refused(policy: Path, tmp_path: Path) -> None:
    fresh = module(policy, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(ValueError, match="got ReduceLROnPlateau"):
        trainer(tmp_path).fit(fresh, Data())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 0}, "group_size must be at least 1, got 0"),
        ({"num_minibatches": -1}, "num_minibatches must be at least 1, got -1"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens must be positive or null, got 0"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm must be positive or null, got 0\.0"),
    ],
)
def test_impossible_updates_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Updates(**arguments)


def test_each_module_has_a_rule_of_its_own(policy: Path) -> None:
    first, second = (ReSearchModule(PolicyConfig(str(policy))) for _ in range(2))
    assert type(first.algorithm) is GRPO
    assert first.algorithm.needs_reference
    assert first.algorithm is not second.algorithm
