"""What the tests of the trainer share: a tiny policy on disk, a reward that varies, quick runs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from doubles import tiny

from research_rl.agents.policy.loading import PolicyConfig
from research_rl.agents.types import SamplingParams
from research_rl.envs.protocols import Segment
from research_rl.envs.rewards.presets import RewardFunction
from research_rl.envs.synthetic.world import builtin_world
from research_rl.envs.types import Question, Reward
from research_rl.trainers.checkpoint.metrics_file import RunLogger
from research_rl.trainers.data import QuestionDataModule, Role
from research_rl.trainers.module import ReSearchModule
from research_rl.trainers.settings.options import EnvConfig, Updates

LEARNING_RATE = 0.02


class LengthReward(RewardFunction):
    """Pays by the length of the policy's text, so that random weights earn different rewards."""

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return a reward between 0 and 1."""
        length = sum(len(s.text) for s in segments if s.kind == "policy")
        return Reward(length % 7 / 7, f1=length % 5 / 5)


class ConstantReward(RewardFunction):
    """Pays every rollout the same, so that no group has anything to learn from."""

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return 0, what a rollout that was cut off gets too."""
        return Reward(0.0)


def env(reward: RewardFunction) -> EnvConfig:
    """The built-in world behind a prompt that is short, because a token is a byte here."""
    return EnvConfig(reward=reward, top_k=1, prompt="Question: {prompt}\n")


def questions(n: int = 8) -> list[Question]:
    """Questions of the built-in world."""
    return builtin_world()[0][:n]


def checkpoint(folder: Path, **settings: Any) -> Path:
    """A tiny random policy that often ends its turns or searches; see tiny.checkpoint."""
    often = {"<eos>": 3.0, "</search>": 3.0, "<search>": 3.0}
    return tiny.checkpoint(folder, bias=often, **settings)


def module(policy: Path | PolicyConfig, **arguments: Any) -> ReSearchModule:
    """A module for quick runs: SGD, eight rollouts of at most 24 tokens an iteration."""
    config = policy if isinstance(policy, PolicyConfig) else PolicyConfig(str(policy))
    defaults: dict[str, Any] = {
        "env": env(LengthReward()),
        "sampling": SamplingParams(max_response_tokens=24),
        "updates": Updates(group_size=4, micro_batch_size=3),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=LEARNING_RATE),
    }
    return ReSearchModule(config, **{**defaults, **arguments})


def trainer(folder: Path, steps: int = 2, **arguments: Any) -> pl.Trainer:
    """A silent trainer on the CPU that logs every step to ``folder``/metrics.csv."""
    defaults: dict[str, Any] = {
        "logger": RunLogger(folder, name="", version="", flush_logs_every_n_steps=1),
        "accelerator": "cpu",
        "max_steps": steps,
        "max_epochs": -1,
        "log_every_n_steps": 1,
        "val_check_interval": 1,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(**{**defaults, **arguments})


class Data(QuestionDataModule):
    """The built-in world's questions, two an iteration."""

    def __init__(self, val_batch_size: int = 3) -> None:
        names = dict.fromkeys(("train", "val", "test"), "the built-in world")
        super().__init__(**names, batch_size=2, val_batch_size=val_batch_size, seed=5)

    def questions(self, role: Role) -> list[Question]:
        """Return the same questions for each role."""
        return questions()


def fit(folder: Path, policy: Path | PolicyConfig, steps: int = 2, **arguments: Any) -> Any:
    """Train without validation and return the module."""
    trained = module(policy, **arguments)
    trainer(folder, steps, limit_val_batches=0).fit(trained, Data())
    return trained


def weights(trained: ReSearchModule) -> torch.Tensor:
    """All weights of the policy in one vector."""
    return torch.cat([p.detach().flatten() for p in trained.policy.parameters()])


def start(policy: Path, folder: Path, **arguments: Any) -> ReSearchModule:
    """Return a module as it is before the first update."""
    fresh = module(policy, **arguments)
    trainer(folder / "start", steps=0).fit(fresh, Data())
    return fresh


def rows(folder: Path) -> list[dict[str, str]]:
    """Return what was logged, row by row, without what is empty."""
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
