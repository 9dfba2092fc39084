"""TorchRL on ReSearch-v0: a text rollout through GymWrapper, then PPO on the world as choices.

pip install torchrl
python examples/torchrl_ppo.py
"""

from __future__ import annotations

import argparse

import gymnasium as gym
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper, SerialEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import research_rl.envs.adapters  # noqa: F401  registers ReSearch-v0 and ReSearchChoices-v0
from research_rl.envs.adapters.choices import parse_question


class FirstRelation(nn.Module):
    """A policy of text: asks for the innermost relation, then answers with what was found."""

    def forward(self, observation: str) -> str:
        """Return a turn."""
        if observation.startswith(" <result>"):
            return f"<think> t </think><answer> \\boxed{{{observation.split()[-3]}}} </answer>"
        question = "Who is" + observation.rsplit("Who is", 1)[1].split("?")[0] + "?"
        relations, person = parse_question(question)
        return f"<think> t </think><search> the {relations[0]} of {person} </search>"


def text_rollout(seed: int) -> TensorDict:
    """Play one episode as strings; return it as TorchRL keeps it."""
    env = GymWrapper(gym.make("ReSearch-v0", top_k=1, max_searches=4))
    env.set_seed(seed)
    policy = TensorDictModule(FirstRelation(), in_keys=["observation"], out_keys=["action"])
    return env.rollout(5, policy)


def make_env() -> GymWrapper:
    """Return the world as choices, observed one-hot."""
    env = gym.wrappers.FlattenObservation(gym.make("ReSearchChoices-v0"))
    return GymWrapper(env, categorical_action_encoding=True)


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Return a small network that takes whole numbers too."""
    return nn.Sequential(ToFloat(), nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, outputs))


class ToFloat(nn.Module):
    """One-hot numbers come as integers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` as float32."""
        return x.float()


def ppo(batches: int, frames: int, lr: float) -> list[float]:
    """Train; return the mean reward of the episodes that ended in each batch."""
    env = SerialEnv(16, make_env)
    size, choices = env.observation_spec["observation"].shape[-1], 7
    logits = TensorDictModule(network(size, choices), ["observation"], ["logits"])
    actor = ProbabilisticActor(
        logits, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True
    )
    critic = ValueOperator(network(size, 1), in_keys=["observation"])
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.02)
    advantage = GAE(gamma=1.0, lmbda=0.95, value_network=critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=lr)
    collector = Collector(env, actor, frames_per_batch=frames, total_frames=frames * batches)
    rewards = []
    for number, data in enumerate(collector, 1):
        for _ in range(8):
            advantage(data)
            losses = loss(data.reshape(-1))
            optimizer.zero_grad()
            parts = ("loss_objective", "loss_critic", "loss_entropy")
            sum(losses[part] for part in parts).backward()
            optimizer.step()
        ended = data["next", "done"]
        rewards.append(float(data["next", "reward"][ended].mean()))
        print(f"batch {number:2d}  episodes {int(ended.sum())}  reward {rewards[-1]:.2f}")
    collector.shutdown()
    return rewards


def main(argv: list[str] | None = None) -> list[float]:
    """Play, then train; return the rewards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args(argv)
    played = text_rollout(seed=0)
    print(played["action"][0], "->", played["next", "observation"][0].strip())
    torch.manual_seed(0)
    return ppo(args.batches, args.frames, args.lr)


if __name__ == "__main__":
    main()
