"""Stable-Baselines3's PPO on the built-in world as seven choices.

pip install stable-baselines3
python examples/sb3_ppo.py
"""

from __future__ import annotations

import argparse

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

import research_rl.envs.adapters  # noqa: F401  registers ReSearchChoices-v0


class Rewards(BaseCallback):
    """Keeps the mean reward of the last hundred episodes, once an iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        paid = [episode["r"] for episode in self.model.ep_info_buffer or []]
        self.means.append(float(np.mean(paid)) if paid else 0.0)
        print(f"steps {self.num_timesteps:6d}  reward {self.means[-1]:.2f}")


def main(argv: list[str] | None = None) -> list[float]:
    """Train; return the mean rewards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--envs", type=int, default=16)
    args = parser.parse_args(argv)
    envs = make_vec_env("ReSearchChoices-v0", args.envs, seed=0)
    model = PPO(
        "MlpPolicy",
        envs,
        n_steps=64,
        batch_size=256,
        learning_rate=3e-3,
        ent_coef=0.02,
        seed=0,
        device="cpu",
    )
    rewards = Rewards()
    model.learn(args.steps, callback=rewards)
    return rewards.means


if __name__ == "__main__":
    main()
