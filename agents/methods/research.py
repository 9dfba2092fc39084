"""Agents that answer questions; ReSearchAgent is the policy with its search tool."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym

from research_rl.agents.engines import seed_of
from research_rl.agents.policy import LMPolicy
from research_rl.agents.rollout import collect_rollouts
from research_rl.agents.types import Engine, Rollout, SamplingParams
from research_rl.envs import Episode, Passage, Question, ReSearchVectorEnv
from research_rl.envs.protocols import RESEARCH, Protocol


@dataclass(frozen=True)
class Message:
    """A stretch of the way to an answer, and who wrote it."""

    role: Literal["model", "environment"]
    text: str


@dataclass(frozen=True)
class Prediction:
    """An agent's answer to one question, and how it came about."""

    question: Question
    text: str
    """The answer itself; "" if there is none."""
    steps: tuple[Message, ...] = ()
    """What the model wrote and was given, in order, without the prompt; a turn stands behind what
    the prompt had opened of it."""
    queries: tuple[str, ...] = ()
    """What was searched for, in order."""
    passages: tuple[tuple[Passage, ...], ...] = ()
    """What each query found and the model was shown, best first."""
    finish_reason: str = ""
    """Why it ended: the episode's reason (answer, no_answer, search_budget, turn_budget, length),
    of the baselines answer, no_answer or length; error where ``error`` is set."""
    format_error: str | None = None
    """What is wrong with the form of the model's text; None if nothing is."""
    sampled_tokens: int = 0
    """Tokens that the model wrote, over all its calls."""
    result_tokens: int = 0
    """Tokens of passages that the model was given, counted again where they are shown again; 0
    where nobody counts them."""
    seconds: float = 0.0
    """Wall time; of questions that were answered together, each has an equal share of it."""
    rollout: Rollout | None = None
    """The episode as token ids, where the agent played one on a local model."""
    error: str | None = None
    """Why the model's server gave no answer to this question: a gap in the data, not a wrong
    answer."""
    protocol: Protocol = RESEARCH
    """The language of the steps; that of ReSearch where the method has none of its own."""


class Agent(ABC):
    """Answers questions."""

    @abstractmethod
    def answer(self, questions: Seq[Question]) -> list[Prediction]:
        """Return one prediction for each question, in order."""

    def close(self) -> None:  # noqa: B027  (most agents hold nothing)
        """Close the environment that the agent made for itself; it cannot answer after this."""


class ReSearchAgent(Agent):
    """Lets the policy think and search in the environment, as it does in training.

    Args:
        policy: the language model.
        engine: samples from it.
        env: ``gym.make_vec("ReSearch-v0", autoreset_mode="Disabled", ...)``.
        params: how to sample; greedy when None.
        seed: of sampled texts; each question has its own seed made from it.
    """

    def __init__(
        self,
        policy: LMPolicy,
        engine: Engine,
        env: gym.vector.VectorEnv[Any, Any, Any],
        params: SamplingParams | None = None,
        seed: int = 0,
    ) -> None:
        self.policy, self.engine, self.env, self.seed = policy, engine, env, seed
        self.params = params or SamplingParams(temperature=0.0)

    def answer(self, questions: Seq[Question]) -> list[Prediction]:
        """See Agent.answer; the questions' gold answers are used for nothing but the reward."""
        began = time.perf_counter()
        seeds = [seed_of(self.seed, question.id) for question in questions]
        rollouts = collect_rollouts(
            questions, self.env, self.policy, self.engine, self.params, seeds
        )
        if not rollouts:
            return []
        share = (time.perf_counter() - began) / len(rollouts)
        rows = self.env.unwrapped
        assert isinstance(rows, ReSearchVectorEnv), "collect_rollouts has checked it"
        return [_told(r, e, share) for r, e in zip(rollouts, rows.episodes, strict=True)]


def _told(rollout: Rollout, episode: Episode, seconds: float) -> Prediction:
    """The prediction that a finished episode amounts to."""
    sequence = rollout.sequence
    return Prediction(
        question=rollout.question,
        text=rollout.reward.prediction,
        steps=alternate(rollout.whole_turns, rollout.results),
        queries=tuple(rollout.queries),
        passages=tuple(map(tuple, episode.passages)),
        finish_reason=rollout.finish_reason,
        format_error=rollout.reward.format_error,
        sampled_tokens=sum(sequence.loss_mask),
        result_tokens=len(sequence.loss_mask) - sum(sequence.loss_mask),
        seconds=seconds,
        rollout=rollout,
        protocol=rollout.protocol,
    )


def opened_of(episode: Episode, turn: int) -> str:
    """Return what the prompt of an episode opened of a turn, by its number from 0."""
    return episode.opened.before(turn, episode.rules.protocol.keeps_eos)


def whole_turns(episode: Episode) -> list[str]:
    """Return the turns of an episode, each behind what the prompt had opened of it."""
    return [opened_of(episode, number) + turn for number, turn in enumerate(episode.turns)]


def alternate(turns: Seq[str], results: Seq[str]) -> tuple[Message, ...]:
    """The turns of a model with the environment's result behind each, as far as there is one."""
    steps: list[Message] = []
    for number, turn in enumerate(turns):
        steps.append(Message("model", turn))
        steps += [Message("environment", text) for text in results[number : number + 1]]
    return tuple(steps)
