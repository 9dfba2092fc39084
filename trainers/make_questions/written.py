"""Questions that a language model writes about two passages; it is trusted in nothing."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from research_rl.agents import SamplingParams
from research_rl.agents.methods import ModelInput, behind_thoughts
from research_rl.trainers.audit import stands_in
from research_rl.trainers.make_questions.checks import MODEL_FAILED
from research_rl.trainers.make_questions.drafts import Draft, Hop, NoDraft, Proposer, word_list
from research_rl.trainers.make_questions.facts import Facts, subject_of
from research_rl.trainers.make_questions.metered import SPENT, Metered

NOT_THE_FORM = "the model did not write the four lines that it was asked for"
_BATCH = 8
_LONGEST = 1200
_PROMPT = """Two passages are given. The first one names {name}, the second one tells about it.

Passage 1: {first}

Passage 2: {second}

Write a question that nobody can answer without both passages. The question must not name {name}: \
it describes it by what passage 1 says. The answer is a name, a number or a few words that stand \
in passage 2. Write four lines and nothing else:
First: a question that passage 1 answers with «{name}»
Second: a question about {name} that passage 2 answers
Answer: the answer of the second question
Question: both in one, without the name {name}"""
_LINE = re.compile(r"^\W*(First|Second|Answer|Question)\W*:\s*(.+?)\s*$", re.MULTILINE)


class Written(Proposer):
    """Lets a model write a question about each pair of passages of which one names the other.

    Args:
        facts: of the corpus, for its names.
        model: writes; nothing is asked of it twice.
        seed: decides the order of the pairs.
        max_tokens: of a proposal.
    """

    def __init__(
        self,
        facts: Facts,
        model: Metered,
        seed: int = 0,
        max_tokens: int = 200,
    ) -> None:
        self._facts, self._texts, self._model, self._seed = facts, facts.texts, model, seed
        self._params = SamplingParams(max_tokens, temperature=0.0)
        self._pairs = _pairs(facts)

    def links(self) -> Sequence[tuple[str, ...]]:
        """See ``Proposer``."""
        documents = self._texts.documents
        return [(documents[first], documents[second]) for first, second, _ in self._pairs]

    def drafts(self, splits: Mapping[str, str]) -> Iterator[Draft | NoDraft]:
        """See ``Proposer``; pairs of two splits are not asked about.

        Raises:
            ModelUnavailable: the server answers nothing.
        """
        documents = self._texts.documents
        pairs = [
            one for one in self._pairs if splits[documents[one[0]]] == splits[documents[one[1]]]
        ]
        random.Random(f"pairs {self._seed}").shuffle(pairs)
        for start in range(0, len(pairs), _BATCH):
            batch = pairs[start : start + _BATCH]
            asked: list[ModelInput] = [
                [{"role": "user", "content": self._prompt(*pair)}] for pair in batch
            ]
            written = self._model.generate(asked, self._params)
            for pair, one in zip(batch, written, strict=True):
                if one.error is None:
                    yield self._read(pair, behind_thoughts(one.text))
                elif one.error != SPENT:
                    yield NoDraft(self._id(pair), MODEL_FAILED, one.error[:200])
            if self._model.spent:
                return

    def _prompt(self, first: int, second: int, name: str) -> str:
        texts = (self._texts.corpus[place].contents[:_LONGEST] for place in (first, second))
        return _PROMPT.format(name=name, first=next(texts), second=next(texts))

    def _id(self, pair: tuple[int, int, str]) -> str:
        return " + ".join(self._texts.corpus[place].id for place in pair[:2])

    def _read(self, pair: tuple[int, int, str], said: str) -> Draft | NoDraft:
        first, second, name = pair
        lines: dict[str, str] = {}
        for word, text in _LINE.findall(said):
            lines.setdefault(word, text.strip("«»\"'* "))
        if len(lines) < 4 or not all(lines.values()):
            return NoDraft(self._id(pair), NOT_THE_FORM, said[:200])
        answer = lines["Answer"].rstrip(".")
        hops = (
            Hop(lines["First"], name, first, subject_of(self._texts.title(first))),
            Hop(lines["Second"], answer, second, name),
        )
        return Draft(lines["Question"], (answer,), hops)


def _pairs(facts: Facts) -> list[tuple[int, int, str]]:
    """Return passages of which the first names what the second is about."""
    texts = facts.texts
    about: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place in range(len(texts)):
        about[word_list(subject_of(texts.title(place)))].append(place)
    by_first: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for key in facts.names:
        if key in about:
            by_first[key[0]].append(key)
    found = []
    for place in range(len(texts)):
        words = texts.tokens(place)
        for key in sorted({k for word in set(words) for k in by_first.get(word, ())}):
            if stands_in(key, words):
                own = texts.documents[place]
                found += [
                    (place, other, facts.names[key])
                    for other in about[key][:3]
                    if texts.documents[other] != own
                ]
    return found
