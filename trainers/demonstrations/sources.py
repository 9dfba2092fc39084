"""Sources of demonstrations: a question's gold evidence, a local policy, or a served teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from research_rl.agents import (
    Engine,
    Rollout,
    SamplingParams,
    TextOnly,
    collect_rollouts,
    seed_of,
    vector_rows,
)
from research_rl.agents.methods import Generator, ServedReSearchAgent
from research_rl.agents.policy import LMPolicy
from research_rl.envs import Episode, Question
from research_rl.trainers.demonstrations.gold import GoldPlayer

SERVER_FAILED = "the server gave no answer"


class RolloutSource(Protocol):
    """Plays questions; one that cannot be played is answered by the reason."""

    def __call__(self, questions: Sequence[Question], sample: int) -> list[Rollout | str]:
        """Return a rollout for each question, or why there is none.

        Args:
            questions: to be played together.
            sample: which of several samples of the same question this is.
        """


class FromGold:
    """Gold evidence, no model; every sample is the same."""

    def __init__(self, player: GoldPlayer) -> None:
        self._player = player

    def __call__(self, questions: Sequence[Question], sample: int) -> list[Rollout | str]:
        """See RolloutSource."""
        played = self._player.play(questions)
        return [one if isinstance(one, str) else text_rollout(one) for one in played]


class FromPolicy:
    """A local model, sampled as in training; the rollouts have its token ids."""

    def __init__(
        self, policy: LMPolicy, engine: Engine, env: Any, params: SamplingParams, seed: int = 0
    ) -> None:
        self._policy, self._engine, self._env = policy, engine, env
        self._params, self._seed = params, seed

    def __call__(self, questions: Sequence[Question], sample: int) -> list[Rollout | str]:
        """See RolloutSource."""
        seeds = [seed_of(self._seed, "collect", question.id, sample) for question in questions]
        played = collect_rollouts(
            questions, self._env, self._policy, self._engine, self._params, seeds
        )
        for rollout, seed in zip(played, seeds, strict=True):
            rollout.seed = seed
        return list(played)


class FromServer:
    """A served model, by OpenAI's protocol; the rollouts have text alone."""

    def __init__(
        self, generator: Generator, env: Any, params: SamplingParams, seed: int = 0
    ) -> None:
        self._generator, self._env, self._params, self._seed = generator, env, params, seed

    def __call__(self, questions: Sequence[Question], sample: int) -> list[Rollout | str]:
        """See RolloutSource."""
        seed = seed_of(self._seed, "collect", sample)
        agent = ServedReSearchAgent(self._generator, self._env, self._params, seed)
        answers = agent.answer(questions)
        episodes = vector_rows(self._env).episodes[: len(questions)]
        return [
            SERVER_FAILED if answer.error is not None or not episode.done else text_rollout(episode)
            for answer, episode in zip(answers, episodes, strict=True)
        ]


def text_rollout(episode: Episode) -> Rollout:
    """Return a finished episode as a rollout without token ids."""
    assert episode.reward is not None, "the episode is over"
    return Rollout(
        question=episode.question,
        sequence=TextOnly(),
        reward=episode.reward,
        turns=list(episode.turns),
        results=episode.results[: len(episode.turns) - 1],
        finish_reason=episode.finish_reason,
        queries=list(episode.queries),
        passage_ids=[[p.id for p in found] for found in episode.passages],
        protocol=episode.rules.protocol,
        opened=episode.opened,
    )
