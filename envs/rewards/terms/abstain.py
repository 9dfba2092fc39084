"""The term about questions that cannot be answered: whether the policy says so, and only then."""

from __future__ import annotations

import re
from collections.abc import Sequence

from research_rl.envs.protocols import Segment
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


class AbstainTerm(RewardTerm):
    """1 where the policy rightly said that there is no answer, or rightly gave one; else 0.

    A question is unanswerable if its metadata say ``unanswerable``: those of a SyntheticWorld with
    an ``unanswerable_share``, and rows that say so. An answer counts as given whether or not it is
    right, which the answer term judges; no answer at all earns 0 either way.

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
        wanted = bool(question.metadata.get("unanswerable"))
        return float(abstained(prediction, self.phrases) == wanted)
