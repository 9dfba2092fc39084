"""Terms about passages: what was seen, what was cited, and what searching cost."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence

from research_rl.envs.protocols import Segment
from research_rl.envs.rewards.terms.base import Passages, RewardTerm, Weight
from research_rl.envs.system import fold_title, folded
from research_rl.envs.types import Passage, Question, passage_title

log = logging.getLogger(__name__)
_CITED = re.compile(r"\[([^\[\]\n]{1,200})\]")
_MOST_CITED = 1000


def _gold(question: Question) -> tuple[frozenset[str], frozenset[str]]:
    """Ids and titles of the passages that support the answer; the ids alone where they are known.

    A world with aliases counts a fact, not the name that leads to it.
    """
    known = question.metadata
    ids = known.get("fact_ids") or known.get("gold_ids") or ()
    titles = known.get("supporting_titles") or ()
    named = titles if isinstance(titles, (list, tuple)) else ()
    held = ids if isinstance(ids, (list, tuple)) else ()
    return frozenset(map(str, held)), frozenset(fold_title(str(title)) for title in named)


def _seen(passages: Passages) -> list[Passage]:
    return [passage for found in passages for passage in found]


class EvidenceTerm(RewardTerm):
    """The share of the question's gold passages that the searches found, 0 to 1.

    Gold are the ``gold_ids`` of the question's metadata, or its ``supporting_titles`` where it has
    no ids. A question with neither earns 0, and the log says so once.

    Args:
        weight: see RewardTerm.
    """

    def __init__(self, weight: Weight = 0.2) -> None:
        super().__init__(weight)
        self._told = False

    def __call__(
        self, segments: Sequence[Segment], question: Question, passages: Passages
    ) -> float:
        """See RewardTerm."""
        ids, titles = _gold(question)
        if ids:
            return len(ids & {str(p.id) for p in _seen(passages)}) / len(ids)
        if titles:
            return len(titles & set(map(passage_title, _seen(passages)))) / len(titles)
        # a question without an answer has no evidence either, and nothing is wrong with it
        if not self._told and not question.metadata.get("unanswerable"):
            self._told = True
            log.warning(
                "question %r has neither gold_ids nor supporting_titles in its metadata: evidence "
                "pays 0 for it and for all like it",
                question.id,
            )
        return 0.0


class CitationTerm(RewardTerm):
    """F1 of the passages that the last turn cites, ``[Title]``, against the gold ones it had seen.

    Of two gold passages that were found, one is cited, and so is one that was never found:
    precision 1/2, recall 1/2, F1 1/2. Without gold ids or titles in the metadata, gold are the
    passages that hold a gold answer. Nothing cited earns 0, and so does a search without gold.

    Args:
        weight: see RewardTerm.
    """

    def __init__(self, weight: Weight = 0.1) -> None:
        super().__init__(weight)

    def __call__(
        self, segments: Sequence[Segment], question: Question, passages: Passages
    ) -> float:
        """See RewardTerm."""
        found = _CITED.findall(self.last_turn(segments))[:_MOST_CITED]
        cited = {name for name in map(fold_title, found) if name}
        gold = set(map(passage_title, _supporting(_seen(passages), question)))
        both = len(cited & gold)
        return 2 * both / (len(cited) + len(gold)) if both else 0.0


def _supporting(seen: Iterable[Passage], question: Question) -> list[Passage]:
    ids, titles = _gold(question)
    if ids:
        return [p for p in seen if str(p.id) in ids]
    if titles:
        return [p for p in seen if passage_title(p) in titles]
    answers = [answer for answer in map(folded, question.answers) if answer.strip()]
    texts = ((passage, folded(passage.contents)) for passage in seen)
    return [passage for passage, text in texts if any(answer in text for answer in answers)]


class SearchesTerm(RewardTerm):
    """A constant price: minus the number of searches above ``free``, at most ``most`` of them.

    It is paid for hard questions too, and a policy may learn to answer without evidence rather
    than pay; ``model.price`` charges only what a rollout of the same question did without.

    Args:
        free: searches that cost nothing.
        most: searches that are charged at most.
        weight: price of one search; see RewardTerm.

    Raises:
        ValueError: a number is negative.
    """

    def __init__(self, free: int = 0, most: int = 10, weight: Weight = 0.02) -> None:
        super().__init__(weight)
        if free < 0 or most < 0:
            raise ValueError(f"free and most must not be negative, got {free} and {most}")
        self.free, self.most = free, most

    def __call__(
        self, segments: Sequence[Segment], question: Question, passages: Passages
    ) -> float:
        """See RewardTerm."""
        return -float(min(self.most, max(0, len(passages) - self.free)))
