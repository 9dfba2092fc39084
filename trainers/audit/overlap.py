"""Questions that are asked twice: the same text, or nearly the same words.

Two questions are near where their sets of words share four fifths (Jaccard). "Who is the father of
A?" and "Who is the mother of A?" are near too, so it is told besides whether they share an answer
other than yes or no.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from research_rl.envs import Question
from research_rl.envs.documents import NEAR, NearTexts
from research_rl.trainers.audit.coverage import answers_of


@dataclass(frozen=True)
class Overlap:
    """A question that another one repeats.

    Args:
        other: id of the other.
        likeness: share of words in common, 0 to 1; 1 with ``same`` False is another order of words.
        same: whether the texts are the same, letter case and space aside.
        answer: whether they share an answer other than yes or no.
    """

    other: str
    likeness: float
    same: bool
    answer: bool

    @property
    def leaks(self) -> bool:
        """Whether who has seen the other knows the answer."""
        return self.same or self.answer


def overlaps(
    questions: Sequence[Question], seen: Sequence[Question], near: float = NEAR
) -> dict[str, Overlap]:
    """Return, by id, those questions that resemble one of the seen, with the nearest of these.

    The time grows with pairs that share a rare word, not with all pairs.

    Args:
        questions: looked at.
        seen: for instance the training questions.
        near: least share of words in common.
    """
    texts = NearTexts([q.text for q in (*seen, *questions)], near)
    for question in seen:
        texts.add(question.text)
    by_text = {_folded(q): row for row, q in reversed(list(enumerate(seen)))}
    found: dict[str, Overlap] = {}
    for question in questions:
        twin = by_text.get(_folded(question))
        place, likeness = texts.nearest(question.text) if twin is None else (twin, 1.0)
        if place is not None:
            answer = _share(question, seen[place])
            found[question.id] = Overlap(seen[place].id, likeness, twin is not None, answer)
    return found


def repeated(questions: Sequence[Question]) -> dict[str, str]:
    """Return id -> id of the first question with the same text, for all but these first ones."""
    first: dict[str, str] = {}
    return {
        q.id: first[_folded(q)] for q in questions if first.setdefault(_folded(q), q.id) != q.id
    }


def _folded(question: Question) -> str:
    return " ".join(question.text.split()).casefold()


def _share(one: Question, other: Question) -> bool:
    """Whether they share an answer; that of yes or no says nothing."""
    return bool(answers_of(one) & answers_of(other))
