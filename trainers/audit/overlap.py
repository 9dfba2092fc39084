"""Questions that are asked twice: the same text, or nearly the same words.

Two questions are near where their sets of words share four fifths (Jaccard). "Who is the father of
A?" and "Who is the mother of A?" are near too, so it is told besides whether they share an answer
other than yes or no.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from research_rl.envs import Question
from research_rl.envs.retrieval.encoders import words
from research_rl.trainers.audit.coverage import answers_of

NEAR = 0.8


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
    counts = Counter(word for q in (*seen, *questions) for word in set(words(q.text)))
    index: dict[str, list[int]] = defaultdict(list)
    sets = [_words(q, counts) for q in seen]
    for row, one in enumerate(sets):
        for word in one[: _prefix(len(one), near)]:
            index[word].append(row)
    by_text = {_folded(q): row for row, q in reversed(list(enumerate(seen)))}
    found: dict[str, Overlap] = {}
    for question in questions:
        twin = by_text.get(_folded(question))
        place, likeness = (
            _nearest(_words(question, counts), sets, index, near) if twin is None else (twin, 1.0)
        )
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


def _nearest(
    one: list[str], sets: Sequence[list[str]], index: Mapping[str, list[int]], near: float
) -> tuple[int | None, float]:
    """Return the row with most words in common, if enough, and their share."""
    own, best, place = set(one), 0.0, None
    candidates = {row for word in one[: _prefix(len(one), near)] for row in index.get(word, ())}
    for row in sorted(candidates):
        other = sets[row]
        if near * len(own) <= len(other) <= len(own) / near:
            common = len(own.intersection(other))
            likeness = common / (len(own) + len(other) - common)
            if likeness >= near and likeness > best:
                best, place = likeness, row
    return place, best


def _words(question: Question, counts: Mapping[str, int]) -> list[str]:
    """The different words of a question, the rarest first."""
    return sorted(set(words(question.text)), key=lambda word: (counts[word], word))


def _prefix(size: int, near: float) -> int:
    """Words of which two sets that are near share at least one, each sorted alike."""
    return size - math.ceil(near * size) + 1


def _folded(question: Question) -> str:
    return " ".join(question.text.split()).casefold()


def _share(one: Question, other: Question) -> bool:
    """Whether they share an answer; that of yes or no says nothing."""
    return bool(answers_of(one) & answers_of(other))
