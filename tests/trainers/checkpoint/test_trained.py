"""A checkpoint of another algorithm is gone on from, one of other trained weights is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import training
from torch.optim import AdamW

from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.trainers.algorithms import GRPO, PPO
from research_rl.trainers.algorithms.policy_gradient import AdaptiveKL
from research_rl.trainers.module import ReSearchModule
from research_rl.trainers.settings.errors import is_users_mistake

pytestmark = pytest.mark.filterwarnings("ignore")


def fit(
    folder: Path, policy: Path | PolicyConfig, steps: int, start: Path | None = None, **more: Any
) -> ReSearchModule:
    """Train to ``steps``, on from a checkpoint if there is one, and leave ``STEPS.ckpt``."""
    module = training.module(policy, optimizer=lambda p: AdamW(p, lr=1e-3), **more)
    trainer = training.trainer(folder, steps, limit_val_batches=0)
    trainer.fit(module, training.Data(), ckpt_path=start)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return module


def moments(file: Path) -> dict[int, Any]:
    state: dict[int, Any] = torch.load(file, weights_only=True)["optimizer_states"][0]["state"]
    return state


def test_a_run_goes_on_with_an_algorithm_that_trains_less(
    policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, policy, 1, algorithm=PPO())
    module = fit(tmp_path, policy, 2, tmp_path / "1.ckpt", algorithm=GRPO())
    assert "algorithm.head.weight" in caplog.text
    assert "their moments are dropped" in caplog.text
    before, after = moments(tmp_path / "1.ckpt"), moments(tmp_path / "2.ckpt")
    assert len(before) == len(after) + 2  # weight and bias of the critic
    assert len(after) == len(list(module.policy.trainable_parameters()))
    steps = [{int(one["step"]) for one in state.values()} for state in (before, after)]
    assert max(steps[0]) + 1 == min(steps[1])
    caplog.clear()
    fit(tmp_path, policy, 3, tmp_path / "2.ckpt", algorithm=GRPO())
    assert "another algorithm" not in caplog.text


def test_a_run_goes_on_without_its_kl_control(
    policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, policy, 1, algorithm=GRPO(kl_coef=0.1, kl_control=AdaptiveKL(0.1)))
    fit(tmp_path, policy, 2, tmp_path / "1.ckpt", algorithm=GRPO(kl_coef=0.1))
    assert "its algorithm.kl_scale and their moments are dropped" in caplog.text


def test_a_checkpoint_of_another_algorithm_is_validated(
    policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = fit(tmp_path, policy, 1, algorithm=PPO())
    module = training.module(policy, algorithm=GRPO())
    training.trainer(tmp_path).validate(
        module, training.Data(), ckpt_path=str(tmp_path / "1.ckpt"), verbose=False
    )
    assert torch.equal(training.weights(module), training.weights(trained))
    assert "another algorithm" not in caplog.text


LORA = LoraConfig(r=2)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"freeze_embeddings": True}, {}, "freeze_embeddings and lora"),
        ({}, {"freeze_embeddings": True}, "research export --ckpt"),
        ({"lora": LORA}, {"lora": LoraConfig(r=3)}, r"in the shape \(3, .* got \(2, "),
        ({"lora": LORA}, {}, "must hold every trained weight"),
        ({}, {"lora": LORA}, "must hold every trained weight"),
    ],
)
def test_other_trained_weights_are_refused(
    before: dict[str, Any], now: dict[str, Any], said: str, policy: Path, tmp_path: Path
) -> None:
    fit(tmp_path, PolicyConfig(str(policy), **before), 1)
    with pytest.raises(ValueError, match=said) as refused:
        fit(tmp_path, PolicyConfig(str(policy), **now), 2, tmp_path / "1.ckpt")
    assert is_users_mistake(refused.value)


def test_moments_of_another_weight_are_refused_though_there_are_as_many(
    policy: Path, tmp_path: Path
) -> None:
    fit(tmp_path, policy, 1)
    state = torch.load(tmp_path / "1.ckpt", weights_only=True)
    held = state["optimizer_states"][0]["state"]
    first, other = 0, next(n for n in held if held[n]["exp_avg"].shape != held[0]["exp_avg"].shape)
    held[first], held[other] = held[other], held[first]
    torch.save(state, tmp_path / "mixed.ckpt")
    with pytest.raises(ValueError, match="others in their place"):
        fit(tmp_path, policy, 2, tmp_path / "mixed.ckpt")
