"""Algorithms from outside the package train through the same module, unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from doubles.training import Data, checkpoint, fit, module, trainer, weights
from torch import Tensor, nn

from research_rl.agents.policy.policy import LMPolicy, PolicyOutput
from research_rl.trainers.algorithms import Algorithm
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.settings.options import Updates


class PlainReinforce(Algorithm):
    """REINFORCE: the reward itself is the advantage."""

    def advantages(self, batch: Batch) -> Tensor:
        """Return (B,)."""
        return batch.rewards

    def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return -advantage * log-prob, the token mean."""
        return -(out.logprobs * batch.advantages * batch.weights).sum(), {}


class ActorCritic(Algorithm):
    """REINFORCE with a value head of its own: advantages of each token, and a value loss."""

    needs_values = True

    def bind(self, policy: LMPolicy) -> None:
        """Build the head."""
        self.critic = nn.Linear(policy.model.config.hidden_size, 1)

    def values(self, out: PolicyOutput) -> Tensor:
        """Return (B, T)."""
        assert out.hidden is not None
        values: Tensor = self.critic(out.hidden.detach())[..., 0]
        return values

    def advantages(self, batch: Batch) -> Tensor:
        """Return (B, T)."""
        assert batch.values is not None
        batch.returns = batch.rewards[:, None].expand_as(batch.values)
        return batch.returns - batch.values

    def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return both losses, the token mean."""
        assert batch.returns is not None
        actor = -out.logprobs * batch.advantages
        critic = (self.values(out) - batch.returns).square()
        value_loss = (critic * batch.weights).sum()
        return (actor * batch.weights).sum() + value_loss, {"value_loss": value_loss}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("policy"))


def test_a_rule_in_two_methods_trains(tmp_path: Path, policy: Path) -> None:
    start = module(policy, algorithm=PlainReinforce())
    trainer(tmp_path / "start", steps=0).fit(start, Data())
    trained = fit(tmp_path / "run", policy, algorithm=PlainReinforce())
    assert float((weights(trained) - weights(start)).norm()) > 1e-4
    assert "train/kl" not in trained.trainer.callback_metrics


def test_a_rule_may_play_one_rollout_a_question(tmp_path: Path, policy: Path) -> None:
    fit(tmp_path, policy, algorithm=PlainReinforce(), updates=Updates(group_size=1))


def test_parameters_of_the_rule_are_trained_saved_and_restored(
    tmp_path: Path, policy: Path
) -> None:
    straight = fit(tmp_path / "straight", policy, steps=4, algorithm=ActorCritic())
    assert "train/value_loss" in straight.trainer.callback_metrics

    half = fit(tmp_path / "half", policy, steps=2, algorithm=ActorCritic())
    path = str(tmp_path / "half.ckpt")
    half.trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(saved["algorithm.critic.weight"], half.algorithm.critic.weight)

    resumed = module(policy, algorithm=ActorCritic())
    run = trainer(tmp_path / "resumed", steps=4, limit_val_batches=0)
    run.fit(resumed, Data(), ckpt_path=path)
    assert isinstance(resumed.algorithm, ActorCritic)
    assert torch.equal(resumed.algorithm.critic.weight, straight.algorithm.critic.weight)
    assert torch.equal(weights(resumed), weights(straight))
    assert not torch.equal(half.algorithm.critic.weight, straight.algorithm.critic.weight)


@pytest.mark.parametrize("method", ["advantages", "loss", "values"])
def test_a_rule_that_lacks_a_method_says_so(method: str) -> None:
    arguments = {"advantages": [None], "loss": [None, None], "values": [None]}[method]
    with pytest.raises(NotImplementedError, match=f"must define {method}"):
        getattr(Algorithm(), method)(*arguments)
