"""What a search can reach: by the question as it stands, and by oracle queries behind it.

An oracle asks what a perfect policy could: in each round the title of every gold passage that the
question or the gold passages found so far name, and the data set's own sub-questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from research_rl.envs import Passage, Question, Retriever, search_checked
from research_rl.trainers.audit.coverage import (
    Coverage,
    Tokens,
    answers_of,
    gold_of,
    name_of_gold,
    stands_in,
    tokens_of,
)

_BATCH = 256
_STEP = re.compile(r"#(\d+)")
_ASIDE = re.compile(r"\s*\([^()]*\)\s*$")


@dataclass
class Reached:
    """What the searches for one question found.

    Args:
        answer: a gold answer stands in a passage found; for yes and no, all gold passages were.
        gold: names of the gold passages found.
    """

    answer: bool = False
    gold: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Reach:
    """What can be found, by question id.

    Args:
        k: passages of a search.
        rounds: of searches, the question's own included.
        by_question: what the question as it stands finds.
        by_oracle: what it finds together with the oracle's queries.
    """

    k: int
    rounds: int
    by_question: Mapping[str, Reached]
    by_oracle: Mapping[str, Reached]


def reach_of(
    questions: Sequence[Question],
    coverage: Coverage,
    corpus: Sequence[Passage],
    retriever: Retriever,
    k: int = 5,
    rounds: int = 2,
    advance: Callable[[int], object] = lambda _: None,
) -> Reach:
    """Search for every question, then for what an oracle would ask.

    Args:
        questions: as ``coverage_of`` was given them.
        coverage: what is in the corpus.
        corpus: its passages by position.
        retriever: searches it.
        k: passages of a search.
        rounds: of searches; the first is the question.
        advance: called with the number of questions that a round has done.

    Raises:
        RetrieverUnavailable: a search failed.
    """
    tried = [_Try(q, coverage.gold[q.id], corpus) for q in questions]
    for number in range(rounds):
        for start in range(0, len(tried), _BATCH):
            batch = tried[start : start + _BATCH]
            asked = [(one, query) for one in batch for query in one.queries(number)]
            queries = list(dict.fromkeys(query for _, query in asked))
            found = search_checked(retriever, queries, k) if queries else []
            results = dict(zip(queries, found, strict=True))
            for one, query in asked:
                one.take(results[query])
            advance(len(batch))
        if number == 0:
            first = {one.question.id: one.state() for one in tried}
    return Reach(k, rounds, first, {one.question.id: one.state() for one in tried})


class _Try:
    """The searches for one question."""

    def __init__(
        self, question: Question, gold: Mapping[str, int], corpus: Sequence[Passage]
    ) -> None:
        self.question, self.reached = question, Reached()
        self._gold, self._corpus = gold, corpus
        self._answers = answers_of(question)
        self._known: list[Tokens] = [tokens_of(question.text)]
        """What names can be taken from: the question, and gold passages that were found."""

    def queries(self, number: int) -> Iterator[str]:
        """Yield what is asked in a round."""
        if number == 0:
            yield self.question.text
            return
        if number == 1:
            yield from sub_questions(self.question.metadata)
        for name, place in self._gold.items():
            if name not in self.reached.gold:
                title = self._corpus[place].contents.partition("\n")[0].strip().strip('"')
                if self._is_named(title):
                    yield title

    def take(self, passages: Sequence[Passage]) -> None:
        """Note what a search has found."""
        for passage in passages:
            name = name_of_gold(self.question, passage)
            text: Tokens | None = None
            if name in self._gold and name not in self.reached.gold:
                self.reached.gold.add(name)
                text = tokens_of(passage.contents)
                self._known.append(text)
            if self._answers and not self.reached.answer:
                text = text or tokens_of(passage.contents)
                self.reached.answer = any(stands_in(one, text) for one in self._answers)
        if not self._answers:
            wanted = gold_of(self.question)
            self.reached.answer = bool(wanted) and len(self.reached.gold) == len(wanted)

    def state(self) -> Reached:
        """Return what is found so far, to be kept."""
        return Reached(self.reached.answer, set(self.reached.gold))

    def _is_named(self, title: str) -> bool:
        wanted = tokens_of(_ASIDE.sub("", title)) or tokens_of(title)
        return bool(wanted) and any(stands_in(wanted, text) for text in self._known)


def sub_questions(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sub-questions of a data set, the answers of earlier steps in place of #1, #2, ...

    MuSiQue's ``question_decomposition`` and any ``decomposition`` of {question, answer(s)}.
    """
    steps = metadata.get("question_decomposition") or metadata.get("decomposition") or ()
    answers: list[str] = []
    for step in steps if isinstance(steps, list) else ():
        if not isinstance(step, Mapping) or not isinstance(step.get("question"), str):
            return
        answer = step.get("answer") or next(iter(step.get("answers") or ()), "")

        def earlier(match: re.Match[str]) -> str:
            number = int(match[1]) - 1
            return answers[number] if number < len(answers) else match[0]

        yield _STEP.sub(earlier, step["question"]).replace(" >> ", " ")
        answers.append(str(answer))
