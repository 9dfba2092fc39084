"""What the warm start shows: rollouts of a bad policy that knows the form and not what to search.

Each is played in a throw-away world whose facts are drawn as they are asked for and are never those
of the world that is trained and tested in. Question, results and layout are the environment's own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from research_rl.envs import Episode, Passage, Question, Rules
from research_rl.envs.protocols import BUDGET_USED, NOTHING_TO_SEARCH, get_prompt
from research_rl.envs.rewards import get_reward
from research_rl.envs.synthetic import (
    MAX_HOPS,
    RELATIONS,
    alias_passage_of,
    fact_passage,
    query_of,
    question_of,
)

TAGS = (
    "<think>",
    "</think>",
    "<search>",
    "</search>",
    "<result>",
    "</result>",
    "<answer>",
    "</answer>",
    "\\boxed{",
    "}",
)
WORDS = tuple(f"{BUDGET_USED} {NOTHING_TO_SEARCH} I need know enough answer".split())
"""Words of thoughts and of the environment's notes."""

_ANSWER = "<think> I know enough . </think> <answer> the answer is \\boxed{{ {} }} </answer>"
_SEARCH = "<think> I need {0} . </think> <search> {0} </search>"


@dataclass(frozen=True)
class Demonstration:
    """One rollout as text; ``results[i]`` follows ``turns[i]`` and the last turn answers."""

    question: str
    turns: tuple[str, ...]
    results: tuple[str, ...]


class Demonstrator:
    """Makes demonstrations.

    Args:
        names: people that may occur.
        true_facts: (relation, person) -> the other person, never to be shown.
        good_share: share of demonstrations that search rightly, 0 to 1; the rest ask for any
            relation of the question, of anybody seen so far, any number of times, and answer with
            anybody seen.
        max_searches: most searches in one; at this number the environment says that they are used.
        seed: equal seeds give equal demonstrations.
        alias_share: share of the people whose facts stand under another name. Searching rightly is
            then searching again; a name found by accident is a person like others to the rest.
    """

    def __init__(
        self,
        names: Sequence[str],
        true_facts: Mapping[tuple[str, str], str],
        good_share: float,
        max_searches: int,
        seed: int,
        alias_share: float = 0.0,
    ) -> None:
        if not 0 <= good_share <= 1:
            raise ValueError(f"good_share must be between 0 and 1, got {good_share}")
        self._names = names
        self._true_facts = true_facts
        self._good_share = good_share
        self._rules = Rules(get_prompt("{prompt}"), get_reward("default"), max_searches)
        self._max_searches = max_searches
        self._alias_share = alias_share
        # with aliases a hop may take two searches, and to search rightly must not run out of them
        self._max_hops = max(1, min(MAX_HOPS, max_searches // 2)) if alias_share else MAX_HOPS
        self._rng = random.Random(f"demonstrations {seed}")

    def __call__(self) -> Demonstration:
        """Return the next demonstration."""
        rng = self._rng
        world = _ThrowAwayWorld(self._names, self._true_facts, rng, self._alias_share)
        start = world.new_person()
        relations = rng.sample(RELATIONS, rng.randint(1, self._max_hops))
        episode = Episode(Question("", question_of(relations, start), ("",)), self._rules)
        if rng.random() < self._good_share:
            answer = self._search_rightly(episode, world, relations, start)
        else:
            answer = self._search_badly(episode, world, relations, start)
        turns = (*episode.turns, _ANSWER.format(answer))
        return Demonstration(episode.question.text, turns, tuple(episode.results))

    def _search_rightly(
        self, episode: Episode, world: _ThrowAwayWorld, relations: Sequence[str], person: str
    ) -> str:
        for relation in relations:
            found = _search(episode, world, relation, person)
            if found == world.alias(person):
                found = _search(episode, world, relation, found)
            person = found
        return person

    def _search_badly(
        self, episode: Episode, world: _ThrowAwayWorld, relations: Sequence[str], person: str
    ) -> str:
        seen = [person]
        for _ in range(self._rng.randint(0, self._max_searches)):
            found = _search(episode, world, self._rng.choice(relations), self._rng.choice(seen))
            if found not in seen:
                seen.append(found)
        return self._rng.choice(seen)


class _ThrowAwayWorld:
    """Facts drawn when they are first asked for; everybody who is drawn is somebody new."""

    def __init__(
        self,
        names: Sequence[str],
        true_facts: Mapping[tuple[str, str], str],
        rng: random.Random,
        alias_share: float,
    ) -> None:
        self._names, self._true_facts, self._rng = names, true_facts, rng
        self._alias_share = alias_share
        self._people: set[str] = set()
        self._facts: dict[tuple[str, str], str] = {}
        self._aliases: dict[str, str | None] = {}

    def new_person(self, never: str | None = None) -> str:
        while (name := self._rng.choice(self._names)) in self._people or name == never:
            pass
        self._people.add(name)
        return name

    def alias(self, person: str) -> str | None:
        """The name under which somebody's facts stand; None where that is the person's own."""
        if person not in self._aliases:
            chosen = self._alias_share > 0 and self._rng.random() < self._alias_share
            self._aliases[person] = alias = self.new_person() if chosen else None
            if alias is not None:
                self._aliases[alias] = None
        return self._aliases[person]

    def fact(self, relation: str, person: str) -> str:
        key = relation, person
        if key not in self._facts:
            self._facts[key] = self.new_person(never=self._true_facts.get(key))
        return self._facts[key]


def _search(episode: Episode, world: _ThrowAwayWorld, relation: str, person: str) -> str:
    """Play one search and return the person, or the alias, that it finds."""
    alias = world.alias(person)
    other = alias or world.fact(relation, person)
    found = alias_passage_of(person, alias) if alias else fact_passage(relation, person, other)
    query = episode.begin(_SEARCH.format(query_of(relation, person)))
    assert query is not None
    episode.finish([Passage("", found)])
    return other
