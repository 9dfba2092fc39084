"""Agents that answer questions; ReSearchAgent is the policy with its search tool."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from research_rl.agents.policy import LMPolicy
from research_rl.agents.rollout import collect_rollouts
from research_rl.agents.types import Engine, Rollout, SamplingParams
from research_rl.envs.types import Question


@dataclass(frozen=True)
class Prediction:
    """An agent's answer to one question."""

    question: Question
    text: str
    """The answer itself; "" if there is none."""
    rollout: Rollout | None = None
    """How it came about, where the agent played an episode."""


class Agent(ABC):
    """Answers questions."""

    @abstractmethod
    def answer(self, questions: Seq[Question]) -> list[Prediction]:
        """Return one prediction for each question, in order."""


class ReSearchAgent(Agent):
    """Lets the policy think and search in the environment, as it does in training.

    Args:
        policy: the language model.
        engine: samples from it.
        env: ``gym.make_vec("ReSearch-v0", autoreset_mode="Disabled", ...)``.
        params: how to sample; greedy when None.
    """

    def __init__(
        self,
        policy: LMPolicy,
        engine: Engine,
        env: gym.vector.VectorEnv[Any, Any, Any],
        params: SamplingParams | None = None,
    ) -> None:
        self.policy, self.engine, self.env = policy, engine, env
        self.params = params or SamplingParams(temperature=0.0)

    def answer(self, questions: Seq[Question]) -> list[Prediction]:
        """See Agent.answer; the questions' gold answers are used for nothing but the reward."""
        rollouts = collect_rollouts(questions, self.env, self.policy, self.engine, self.params)
        return [Prediction(r.question, r.reward.prediction, r) for r in rollouts]
