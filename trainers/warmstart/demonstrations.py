"""Demonstrations for the warm start: rollouts of a bad policy, with the right form.

By default four in five search at random and answer with any name that they have seen. Each is
played in a world of its own, whose facts are drawn when they are asked for and are never those of
the world of the run. Questions, results and layout are the environment's own.
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
    """One rollout as text; ``results[i]`` follows ``turns[i]``, and the last turn answers."""

    question: str
    turns: tuple[str, ...]
    results: tuple[str, ...]


class Demonstrator:
    """Makes demonstrations.

    Args:
        names: of people that may occur.
        true_facts: (relation, person) -> the other person; these facts are never shown.
        good_share: share of demonstrations that search correctly, 0 to 1. The others search any
            number of times, for any relation of the question and anybody seen so far, and answer
            with anybody seen.
        max_searches: most searches in a demonstration; after them the environment says that the
            budget is used.
        seed: equal seeds give equal demonstrations.
        alias_share: share of the people whose facts are filed under another name. A demonstration
            that searches correctly then searches again for that name; the others take the name
            for one more person.
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
        # with aliases a hop may take two searches, for which the budget must suffice
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
    """A world whose facts are drawn when they are first asked for, each with a new person."""

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
        """The other name under which a person's facts are filed; None if it is the person's own."""
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
    """Play one search and return the person, or the other name, that it finds."""
    alias = world.alias(person)
    other = alias or world.fact(relation, person)
    found = alias_passage_of(person, alias) if alias else fact_passage(relation, person, other)
    asked = episode.begin(_SEARCH.format(query_of(relation, person)))
    assert len(asked) == 1
    episode.finish([[Passage("", found)]])
    return other
