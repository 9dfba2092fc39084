"""Questions without a language model: chains of facts in which one is about what the other says."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from research_rl.trainers.audit import Tokens
from research_rl.trainers.make_questions.drafts import Draft, Hop, NoDraft, Proposer, word_list
from research_rl.trainers.make_questions.facts import Fact, Facts

_ROUNDS = 64


class RuleProposer(Proposer):
    """Chains facts: «the boss of Bakset is Domlor» and «the coach of Domlor is Minlak».

    Who is named in one passage and titles another links the two. Each round gives every first fact
    one more chain, so that the questions are spread over the documents.

    Args:
        facts: of the corpus.
        hops: lengths of chains, such as (2,); in turn.
        seed: decides the order.
    """

    def __init__(self, facts: Facts, hops: Sequence[int] = (2,), seed: int = 0) -> None:
        self.facts, self.hops, self.seed = facts, tuple(hops), seed
        self._about: dict[Tokens, list[Fact]] = defaultdict(list)
        for fact in facts.all:
            self._about[word_list(fact.subject)].append(fact)

    def links(self) -> Sequence[tuple[str, ...]]:
        """See ``Proposer``."""
        documents = self.facts.texts.documents
        return list(
            dict.fromkeys(
                (documents[fact.place], documents[after.place])
                for fact in self.facts.all
                for after in self._after(fact)
            )
        )

    def drafts(self, splits: Mapping[str, str]) -> Iterator[Draft | NoDraft]:
        """See ``Proposer``; chains that leave their split are not proposed."""
        rng = random.Random(f"questions {self.seed}")
        first = [fact for fact in self.facts.all if next(self._after(fact), None)]
        rng.shuffle(first)
        first.sort(key=lambda fact: not fact.relation)
        seen: set[str] = set()
        for number in range(_ROUNDS):
            fresh = 0
            for row, fact in enumerate(first):
                hops = self.hops[(number + row) % len(self.hops)]
                for _ in range(4):  # tries at a chain that was not there before
                    chain = self._chain(fact, hops, rng, splits)
                    draft = chain and _draft(chain)
                    if draft and draft.id not in seen:
                        seen.add(draft.id)
                        fresh += 1
                        yield draft
                        break
            if not fresh and number >= len(self.hops):
                return

    def _after(self, fact: Fact) -> Iterator[Fact]:
        """The facts about what a fact says, in other passages."""
        for after in self._about.get(word_list(fact.object), ()):
            if after.place != fact.place:
                yield after

    def _chain(
        self, fact: Fact, hops: int, rng: random.Random, splits: Mapping[str, str]
    ) -> list[Fact]:
        """A chain that comes back to nobody; empty where there is none."""
        documents = self.facts.texts.documents
        split = splits[documents[fact.place]]
        chain = [fact]
        met = {word_list(fact.subject), word_list(fact.object)}
        while len(chain) < hops:
            more = [
                after
                for after in self._after(chain[-1])
                if word_list(after.object) not in met and splits[documents[after.place]] == split
            ]
            if not more:
                return []
            chain.append(rng.choice(more))
            met.add(word_list(chain[-1].object))
        return chain


def _draft(chain: Sequence[Fact]) -> Draft:
    """Ask for the end of a chain by its beginning."""
    asked = chain[0].subject
    for fact in chain:
        asked = fact.describe(asked)
    text = f"Who or what is {asked}?" if chain[-1].relation else f"{asked[0].upper()}{asked[1:]}?"
    hops = tuple(Hop(fact.query, fact.object, fact.place, fact.subject) for fact in chain)
    return Draft(text, (chain[-1].object,), hops)
