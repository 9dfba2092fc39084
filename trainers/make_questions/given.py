"""Drafts from a question file: your own questions, or those of a data set, for the same checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from research_rl.envs import Question
from research_rl.envs.system import fold_title
from research_rl.trainers.audit import stands_in, sub_questions
from research_rl.trainers.make_questions.drafts import (
    Draft,
    Hop,
    NoDraft,
    Proposer,
    Texts,
    word_list,
)
from research_rl.trainers.make_questions.facts import subject_of


class GivenQuestions(Proposer):
    """Questions that know their evidence.

    Read are ``gold_ids`` or ``supporting_titles``, and the steps: ``question_decomposition`` of
    MuSiQue, ``decomposition`` (a step may name its ``passage``), ``evidences`` of 2WikiMultihopQA.
    Without steps a passage is searched for by its title, and what it answers is the next title.

    Args:
        questions: as ``read_questions`` gives them.
        texts: the corpus.
    """

    def __init__(self, questions: Sequence[Question], texts: Texts) -> None:
        self._texts = texts
        self._by_title: dict[str, int] = {}
        for place in range(len(texts)):
            self._by_title.setdefault(fold_title(texts.title(place)), place)
        self._made = [
            Draft(question.text, question.answers, self._hops(question), question.id)
            for question in questions
        ]

    def links(self) -> Sequence[tuple[str, ...]]:
        """See ``Proposer``."""
        documents = self._texts.documents
        return [tuple(documents[hop.place] for hop in draft.hops) for draft in self._made]

    def drafts(self, splits: Mapping[str, str]) -> Iterator[Draft | NoDraft]:
        """See ``Proposer``."""
        yield from self._made

    def _hops(self, question: Question) -> tuple[Hop, ...]:
        steps, places = list(_steps(question)), self._gold(question)
        if not steps:
            steps = self._by_titles(question, places)
        hops: list[Hop] = []
        left = list(places)
        for query, answer, named in steps:
            place = self._texts.places.get(named) if named else self._place_of(answer, query, left)
            if place is None:
                return ()
            if place in left:
                left.remove(place)
            subject = hops[-1].answer if hops else subject_of(self._texts.title(place))
            hops.append(Hop(query, answer, place, subject))
        return tuple(hops)

    def _gold(self, question: Question) -> list[int]:
        ids = [str(one) for one in question.metadata.get("gold_ids") or ()]
        found = [self._texts.places[one] for one in ids if one in self._texts.places]
        named = question.metadata.get("supporting_titles") or ()
        titles = [fold_title(str(one)) for one in named]
        return found or [self._by_title[one] for one in titles if one in self._by_title]

    def _place_of(self, answer: str, query: str, places: Sequence[int]) -> int | None:
        """The gold passage that holds the answer of a step, that which the query names first."""
        wanted, asked = word_list(answer), word_list(query)
        holding = [p for p in places if wanted and stands_in(wanted, self._texts.tokens(p))]

        def named(place: int) -> bool:
            title = word_list(subject_of(self._texts.title(place)))
            return not (title and stands_in(title, asked))

        return min(holding, key=named, default=None)

    def _by_titles(self, question: Question, places: Sequence[int]) -> list[tuple[str, str, str]]:
        """Steps that go from title to title, the one which the question names first."""
        names = {place: subject_of(self._texts.title(place)) for place in places}
        asked = word_list(question.text)
        ordered = sorted(places, key=lambda p: not stands_in(word_list(names[p]) or ("",), asked))
        steps = []
        for place, after in zip(ordered, [*ordered[1:], None], strict=False):
            answer = question.answers[0] if after is None else names[after]
            steps.append((names[place], answer, self._texts.corpus[place].id))
        return steps


def _steps(question: Question) -> Iterator[tuple[str, str, str]]:
    """Yield query, answer and perhaps passage id of each step that a question states."""
    metadata = question.metadata
    stated: Any = metadata.get("question_decomposition") or metadata.get("decomposition")
    if isinstance(stated, list):
        for query, step in zip(sub_questions(metadata), stated, strict=False):
            answer = step.get("answer") or next(iter(step.get("answers") or ()), "")
            yield query, str(answer), str(step.get("passage") or "")
        return
    for triple in metadata.get("evidences") or ():
        if isinstance(triple, list | tuple) and len(triple) == 3:
            yield f"{triple[1]} of {triple[0]}", str(triple[2]), ""
