"""The term about questions that cannot be answered: whether the policy says so, and only then."""

from __future__ import annotations

import re
from collections.abc import Sequence

from research_rl.envs.protocols import Segment
from research_rl.envs.rewards.fair import fair_scores
from research_rl.envs.rewards.terms.base import Passages, RewardTerm, Weight
from research_rl.envs.types import Question

ABSTENTIONS = (
    *("unknown", "unanswerable", "no answer", "not answerable", "cannot be answered"),
    *("i do not know", "i dont know"),
)
"""Answers that say there is none, folded, without apostrophes and full stops."""
_DROPPED = re.compile(r"['\u2019`.!]")


def abstained(prediction: str, phrases: Sequence[str] = ABSTENTIONS) -> bool:
    """Return whether an answer says, and says nothing else, that there is none."""
    plain = " ".join(_DROPPED.sub("", prediction[:200].casefold()).split())
    return plain in phrases


def says_none(
    prediction: str, answers: Sequence[str], phrases: Sequence[str] = ABSTENTIONS
) -> bool:
    """Return whether an answer rightly says of an unanswerable question that there is none.

    Args:
        prediction: the answer.
        answers: the gold answers, which may say it in other words or another language.
        phrases: see ``abstained``.
    """
    return abstained(prediction, phrases) or fair_scores(prediction, answers)[1] == 1.0


class AbstainTerm(RewardTerm):
    """1 where the policy rightly said that there is no answer, or rightly gave one; else 0.

    A question is unanswerable if its metadata say ``unanswerable``: those of a SyntheticWorld with
    an ``unanswerable_share``, and rows that say so. An answer counts as given whether or not it is
    right, which the answer term judges; no answer at all earns 0 either way. A gold answer always
    counts as what was called for, so that "Unknown" may be the title of a film.

    Args:
        phrases: answers that abstain, in lower case and without full stops.
        weight: see RewardTerm.
    """

    def __init__(self, phrases: Sequence[str] = ABSTENTIONS, weight: Weight = 0.2) -> None:
        super().__init__(weight)
        self.phrases = tuple(phrases)

    def __call__(
        self, segments: Sequence[Segment], question: Question, passages: Passages
    ) -> float:
        """See RewardTerm."""
        prediction = self.prediction(segments)
        if not prediction.strip():
            return 0.0
        if question.metadata.get("unanswerable"):
            return float(says_none(prediction, question.answers, self.phrases))
        given = not abstained(prediction, self.phrases)
        return float(given or fair_scores(prediction, question.answers)[1])
