"""Demonstrations for the warm start: rollouts of a bad policy, with the right form.

By default four in five search at random and answer with any name that they have seen. Each is
played in a world of its own, whose facts are drawn when they are asked for and are never those of
the world of the run. Questions, results and layout are the environment's own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from research_rl.envs import UNANSWERABLE, Episode, Passage, Question, Rules
from research_rl.envs.protocols import BUDGET_USED, NOTHING_TO_SEARCH, RESEARCH, Opened, Protocol
from research_rl.envs.rewards import get_reward
from research_rl.envs.synthetic import (
    MAX_HOPS,
    RELATIONS,
    alias_passage_of,
    fact_passage,
    query_of,
    question_of,
)
from research_rl.trainers.warmstart.words import answer_turn, bare_prompt, search_turn, takes_pairs

TAGS = (*(tag for pair in RESEARCH.tags.values() for tag in pair), "\\boxed{", "}")
WORDS = tuple(f"{BUDGET_USED} {NOTHING_TO_SEARCH} I need know enough answer".split())
"""Words of thoughts and of the environment's notes."""


@dataclass(frozen=True)
class Demonstration:
    """One rollout as text; ``results[i]`` follows ``turns[i]``, and the last turn answers.

    What a prompt opens of a turn, see Opened, is no part of it.
    """

    question: str
    turns: tuple[str, ...]
    results: tuple[str, ...]
    found: tuple[tuple[str, str], ...] = ()
    """Each query, and the contents of the passage that it found."""


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
        protocol: that they are written in. In tags that take several queries, a turn asks for two
            relations of a person; the first is the one that counts.
        unanswerable_share: share of the facts that no passage states; a search for one finds a
            passage about somebody else or about another relation. A demonstration that searches
            correctly then answers "unknown", and such a share of the others does so too.
    """

    def __init__(
        self,
        names: Sequence[str],
        true_facts: Mapping[tuple[str, str], str],
        good_share: float,
        max_searches: int,
        seed: int,
        alias_share: float = 0.0,
        protocol: Protocol = RESEARCH,
        unanswerable_share: float = 0.0,
    ) -> None:
        if not 0 <= good_share <= 1:
            raise ValueError(f"good_share must be between 0 and 1, got {good_share}")
        self._names = names
        self._true_facts = true_facts
        self._good_share = good_share
        self._protocol = protocol
        self._rules = Rules(
            bare_prompt(protocol),
            get_reward("default", protocol=protocol),
            max_searches,
            protocol=protocol,
        )
        self._opened = Opened(protocol.begins, protocol.begins if protocol.keeps_eos else "")
        self._pairs = takes_pairs(protocol)
        self._max_searches = max_searches // 2 if self._pairs else max_searches
        self._alias_share = alias_share
        self._unanswerable_share = unanswerable_share
        # with aliases a hop may take two searches, for which the budget must suffice
        turns = self._max_searches // 2 if alias_share else self._max_searches
        narrow = alias_share or self._pairs
        self._max_hops = max(1, min(MAX_HOPS, turns)) if narrow else MAX_HOPS
        self._rng = random.Random(f"demonstrations {seed}")

    def __call__(self) -> Demonstration:
        """Return the next demonstration."""
        rng = self._rng
        shares = self._alias_share, self._unanswerable_share
        world = _ThrowAwayWorld(self._names, self._true_facts, rng, *shares)
        start = world.new_person()
        relations = rng.sample(RELATIONS, rng.randint(1, self._max_hops))
        question = Question("", question_of(relations, start), ("",))
        episode = Episode(question, self._rules, self._opened)
        if rng.random() < self._good_share:
            answer = self._search_rightly(episode, world, relations, start)
        else:
            answer = self._search_badly(episode, world, relations, start)
        turns = (*episode.turns, answer_turn(self._protocol, answer, _opening(episode)))
        passages = [found[0].contents for found in episode.passages]
        found = tuple(zip(episode.queries, passages, strict=True))
        return Demonstration(question.text, turns, tuple(episode.results), found)

    def _search_rightly(
        self, episode: Episode, world: _ThrowAwayWorld, relations: Sequence[str], person: str
    ) -> str:
        for relation in relations:
            found = self._search(episode, world, relation, person)
            if found == world.alias(person):
                person = found
                found = self._search(episode, world, relation, person)
            if not world.states(relation, person):
                return UNANSWERABLE[0]
            person = found
        return person

    def _search_badly(
        self, episode: Episode, world: _ThrowAwayWorld, relations: Sequence[str], person: str
    ) -> str:
        seen = [person]
        for _ in range(self._rng.randint(0, self._max_searches)):
            relation = self._rng.choice(relations)
            found = self._search(episode, world, relation, self._rng.choice(seen))
            if found not in seen:
                seen.append(found)
        if self._unanswerable_share and self._rng.random() < self._unanswerable_share:
            return UNANSWERABLE[0]
        return self._rng.choice(seen)

    def _search(self, episode: Episode, world: _ThrowAwayWorld, relation: str, person: str) -> str:
        """Play one search and return the person, or the other name, that it finds first."""
        relations = [relation]
        if self._pairs:
            relations.append(self._rng.choice([one for one in RELATIONS if one != relation]))
        queries = [query_of(one, person) for one in relations]
        asked = episode.begin(search_turn(self._protocol, queries, _opening(episode)))
        assert list(asked) == queries, (asked, queries)
        found = [world.found(one, person) for one in relations]
        episode.finish([[Passage("", contents)] for contents, _ in found])
        return found[0][1]


def _opening(episode: Episode) -> str:
    """What the prompt opened of the turn that comes next."""
    return episode.opened.before(len(episode.turns), episode.rules.protocol.keeps_eos)


class _ThrowAwayWorld:
    """A world whose facts are drawn when they are first asked for, each with a new person."""

    def __init__(
        self,
        names: Sequence[str],
        true_facts: Mapping[tuple[str, str], str],
        rng: random.Random,
        alias_share: float,
        unanswerable_share: float,
    ) -> None:
        self._names, self._true_facts, self._rng = names, true_facts, rng
        self._alias_share, self._unanswerable_share = alias_share, unanswerable_share
        self._people: set[str] = set()
        self._facts: dict[tuple[str, str], str] = {}
        self._aliases: dict[str, str | None] = {}
        self._stated: dict[tuple[str, str], bool] = {}

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

    def states(self, relation: str, person: str) -> bool:
        """Whether a passage states the fact."""
        key = relation, person
        if key not in self._stated:
            share = self._unanswerable_share
            self._stated[key] = not share or self._rng.random() >= share
        return self._stated[key]

    def found(self, relation: str, person: str) -> tuple[str, str]:
        """The passage that a search finds, and the person, or the other name, that it names."""
        if alias := self.alias(person):
            return alias_passage_of(person, alias), alias
        if not self.states(relation, person):
            relation, person = self._nearest(relation, person)
        other = self.fact(relation, person)
        return fact_passage(relation, person, other), other

    def _nearest(self, relation: str, person: str) -> tuple[str, str]:
        """Another fact of the person, or that of somebody else, which then is stated."""
        if self._rng.random() < 0.5:
            relation = self._rng.choice([one for one in RELATIONS if one != relation])
        else:
            person = self.new_person()
        self._stated[relation, person] = True
        return relation, person
