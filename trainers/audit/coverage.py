"""What of the questions' evidence stands in the corpus: gold passages and answer strings.

The corpus is read once, passage by passage, so that it may be larger than memory.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from research_rl.envs import Passage, Question, passage_title
from research_rl.envs.rewards import normalize_answer
from research_rl.envs.system import UNSPACED, fold_title, folded, marks, typed

UNTELLING = frozenset({"yes", "no", "noanswer"})
"""Answers that almost any passage holds."""
_LETTER = rf"[{UNSPACED}][{marks()}]*"
_TOKEN = re.compile(rf"{_LETTER}|(?:(?![{UNSPACED}])\w[{marks()}]*)+")

Tokens = tuple[str, ...]


def tokens_of(text: str) -> Tokens:
    """Return what is compared of a text: its words, normalised as for exact match.

    Forms of Unicode are folded, typographic quotes and dashes are typed ones, and where a script
    sets no spaces each letter is a token.

    >>> tokens_of("The “Casa Loma”, 東京")
    ('casa', 'loma', '東', '京')
    """
    return tuple(_TOKEN.findall(normalize_answer(folded(typed(text)))))


def stands_in(wanted: Tokens, text: Tokens) -> bool:
    """Return whether tokens stand next to each other in a text."""
    size = len(wanted)
    return any(text[i : i + size] == wanted for i, one in enumerate(text) if one == wanted[0])


def is_unanswerable(question: Question) -> bool:
    """Return whether the right answer is that there is none: no passage shows it."""
    return bool(question.metadata.get("unanswerable"))


def answers_of(question: Question) -> set[Tokens]:
    """Return the answers that a passage can show: not yes or no, and not those without a word.

    An unanswerable question has none.
    """
    if is_unanswerable(question):
        return set()
    told = {tokens_of(answer) for answer in question.answers}
    return {one for one in told if one and not (len(one) == 1 and one[0] in UNTELLING)}


def is_closed(question: Question) -> bool:
    """Return whether every answer is yes or no, has no word or is that there is none."""
    return not answers_of(question)


def gold_of(question: Question) -> tuple[str, ...]:
    """Return what supports the answer: ids of passages, or folded titles where there are none."""
    if ids := question.metadata.get("gold_ids"):
        return tuple(dict.fromkeys(map(str, ids)))
    titles = question.metadata.get("supporting_titles") or ()
    return tuple(dict.fromkeys(fold_title(str(title)) for title in titles))


def name_of_gold(question: Question, passage: Passage) -> str:
    """Return by which name of ``gold_of`` a question knows a passage."""
    return passage.id if question.metadata.get("gold_ids") else passage_title(passage)


@dataclass(frozen=True)
class Coverage:
    """What of the questions stands in a corpus.

    Args:
        passages: of the corpus.
        answers: question id -> whether a gold answer stands in a passage; None for yes and no, and
            for unanswerable questions.
        gold: question id -> its gold passages that are there: name -> position in the corpus.
    """

    passages: int
    answers: Mapping[str, bool | None]
    gold: Mapping[str, Mapping[str, int]]

    def missing(self, question: Question) -> bool:
        """Whether nobody can answer from this corpus: neither string nor evidence is there.

        An answer of yes or no is missing where a known gold passage is. That there is no answer
        can be said of any corpus.
        """
        if is_unanswerable(question):
            return False
        there = self.answers[question.id]
        if there is None:
            return len(self.gold[question.id]) < len(gold_of(question))
        return not there


def coverage_of(
    questions: Sequence[Question],
    corpus: Iterable[Passage],
    advance: Callable[[int], object] = lambda _: None,
) -> Coverage:
    """Read a corpus and note what of the questions is in it.

    Args:
        questions: with different ids.
        corpus: its passages, each once.
        advance: called with 1 for every passage read.
    """
    seeking = _Answers(questions)
    by_name: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        for name in gold_of(question):
            by_name[name].append(question)
    gold: dict[str, dict[str, int]] = {question.id: {} for question in questions}
    count = 0
    for place, passage in enumerate(corpus):
        count += 1
        for name in {passage.id, passage_title(passage)} & by_name.keys():
            for question in by_name[name]:
                if name_of_gold(question, passage) == name:
                    gold[question.id].setdefault(name, place)
        seeking.look(tokens_of(passage.contents))
        advance(1)
    answers = {q.id: None if is_closed(q) else q.id in seeking.found for q in questions}
    return Coverage(count, answers, gold)


class _Answers:
    """Answers that were not met yet, by their first token."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.found: set[str] = set()
        self._asked: dict[Tokens, list[str]] = defaultdict(list)
        for question in questions:
            for answer in answers_of(question):
                self._asked[answer].append(question.id)
        self._by_first: dict[str, list[Tokens]] = defaultdict(list)
        for answer in self._asked:
            self._by_first[answer[0]].append(answer)

    def look(self, text: Tokens) -> None:
        """Note the answers that stand in a text; what was met is not looked for again."""
        for first in set(text) & self._by_first.keys():
            left = []
            for answer in self._by_first[first]:
                if stands_in(answer, text):
                    self.found.update(self._asked[answer])
                else:
                    left.append(answer)
            if left:
                self._by_first[first] = left
            else:
                del self._by_first[first]
