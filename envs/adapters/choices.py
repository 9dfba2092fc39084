"""The built-in world as a small discrete environment: seven choices in, two numbers out.

For trainers that know neither text nor language models: CleanRL, Stable-Baselines3, RLlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from research_rl.envs.env import ReSearchEnv
from research_rl.envs.protocols import Protocol
from research_rl.envs.rewards import RewardFunction
from research_rl.envs.synthetic import MAX_HOPS, query_of
from research_rl.envs.task import QuestionLike
from research_rl.envs.types import Retriever

Numbers = NDArray[np.int64]


class ReSearchChoices(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """ReSearch-v0 on questions of the synthetic world, as seven choices.

    ## Action Space
    ``Discrete(7)``. Action ``2 i + 0`` searches the question's relation ``i`` of the person in the
    question, ``2 i + 1`` that of the person found last. Relation 0 is the innermost, the first one
    to ask for; a number beyond the question's relations starts again at the first. Action 6 answers
    with the person found last.

    ## Observation Space
    ``MultiDiscrete([4, max_searches + 1])``: relations in the question, people found so far.
    ``gymnasium.wrappers.FlattenObservation`` makes a one-hot ``Box`` of it.

    Rewards, episode ends and infos are those of ReSearch-v0; ``info["turn"]`` has what was
    written. Always searching the next relation of the person found last, then answering, is paid 1.

    Args:
        env: ReSearch-v0 with the built-in world or one made like it, and ``max_searches``.

    Raises:
        ValueError: another environment, or one without a limit of searches.
    """

    def __init__(self, env: gym.Env[str, str]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        base = env.unwrapped
        if not isinstance(base, ReSearchEnv):
            raise ValueError(f"env must be ReSearch-v0, got {type(base).__name__}")
        limit = base.task.rules.max_searches
        if limit is None:
            raise ValueError(
                "env must limit its searches, got max_searches=None; "
                'make it with gym.make("ReSearch-v0", max_searches=4)'
            )
        self._base = base
        self.action_space = gym.spaces.Discrete(2 * MAX_HOPS + 1)
        self.observation_space = gym.spaces.MultiDiscrete([MAX_HOPS + 1, limit + 1])
        self._relations: list[str] = []
        self._people: list[str] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Numbers, dict[str, Any]]:
        """Begin an episode; options are those of ReSearch-v0."""
        _, info = self.env.reset(seed=seed, options=options)
        self._relations, person = parse_question(info["question"])
        self._people = [person]
        return self._seen(), info

    def step(self, action: np.int64 | int) -> tuple[Numbers, float, bool, bool, dict[str, Any]]:
        """Write the turn that the choice stands for."""
        turn = self.turn(int(action))
        _, reward, terminated, truncated, info = self.env.step(turn)
        if info["num_searches"] == len(self._people):
            self._people.append(_found(self._base))
        return self._seen(), float(reward), terminated, truncated, info | {"turn": turn}

    def turn(self, choice: int) -> str:
        """Return the text of a choice.

        Raises:
            ValueError: there is no such choice.
        """
        if not self.action_space.contains(choice):
            raise ValueError(f"action must be in {self.action_space}, got {choice}")
        protocol, opened = self._base.protocol, self._base.episode.opening
        if choice == 2 * MAX_HOPS:
            return protocol.answer(self._people[-1], thought="t", opened=opened)
        relation = self._relations[choice // 2 % len(self._relations)]
        query = query_of(relation, self._people[-(choice % 2)])
        return protocol.search(query, thought="t", opened=opened)

    def _seen(self) -> Numbers:
        return np.array([len(self._relations), len(self._people) - 1], np.int64)


def make_choices(
    questions: str | Path | Sequence[QuestionLike] | None = None,
    index: str | Path | Retriever | None = None,
    top_k: int = 1,
    max_searches: int = 4,
    search_cost: float = 0.0,
    reward: str | RewardFunction = "default",
    protocol: str | Protocol = "research",
) -> ReSearchChoices:
    """Return ReSearchChoices over ReSearch-v0, whose arguments these are.

    There is no ``render_mode``: Stable-Baselines3 asks for pictures first and goes without them
    where the argument is unknown. Wrap an environment of your own to have one.
    """
    env = ReSearchEnv(
        questions, index, top_k, max_searches, search_cost, reward=reward, protocol=protocol
    )
    return ReSearchChoices(env)


def parse_question(text: str) -> tuple[list[str], str]:
    """Return the relations of a synthetic question, innermost first, and the person asked about.

    >>> parse_question("Who is the boss of the coach of Bakset ?")
    (['coach', 'boss'], 'Bakset')

    Raises:
        ValueError: the question is not of the synthetic world.
    """
    words = text.split()
    relations = words[3:-2:3]
    known = words[:3] == ["Who", "is", "the"] and words[-1:] == ["?"]
    if not known or not 1 <= len(relations) <= MAX_HOPS:
        raise ValueError(
            'questions must be like "Who is the boss of Bakset ?", as those of the synthetic world '
            f"are, got {text!r}"
        )
    return relations[::-1], words[-2]


def _found(env: ReSearchEnv) -> str:
    """The person whom the best passage of the last search names, ``... is Domlor .``"""
    passages = env.episode.passages[-1]
    return passages[0].contents.split()[-2] if passages else ""
