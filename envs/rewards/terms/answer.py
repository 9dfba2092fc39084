"""Terms about what the policy wrote: the answer, its form, and whether it acted at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from research_rl.envs.protocols import Segment
from research_rl.envs.rewards.answers import (
    cover_exact_match,
    exact_match,
    said_literally,
    with_words,
)
from research_rl.envs.rewards.fair import fair_scores
from research_rl.envs.rewards.terms.abstain import says_none
from research_rl.envs.rewards.terms.base import Passages, RewardTerm, Weight
from research_rl.envs.types import Question

AnswerMeasure = Literal["f1", "em", "cover"]


class AnswerTerm(RewardTerm):
    """How well the answer agrees with the best gold answer, 0 to 1.

    An unanswerable question (see AbstainTerm) is answered by whatever says that it is, and by
    its gold answers.

    Args:
        by: f1 (tokens, as the reward default compares them), em (all of it or nothing, by the
            published formula) or cover (a gold answer stands anywhere; open to long answers).
        weight: see RewardTerm.
    """

    def __init__(self, by: AnswerMeasure = "f1", weight: Weight = 1.0) -> None:
        super().__init__(weight)
        if by not in get_args(AnswerMeasure):
            raise ValueError(f"by must be one of {', '.join(get_args(AnswerMeasure))}, got {by!r}")
        self.by = by

    def __call__(
        self, segments: Sequence[Segment], question: Question, passages: Passages
    ) -> float:
        """See RewardTerm."""
        prediction = self.prediction(segments)
        if not prediction:
            return 0.0
        if question.metadata.get("unanswerable"):
            return float(says_none(prediction, question.answers))
        if self.by == "f1":
            return fair_scores(prediction, question.answers)[0]
        if said_literally(prediction, question.answers):
            return 1.0
        compare = exact_match if self.by == "em" else cover_exact_match
        return compare(prediction, with_words(question.answers))


class FormTerm(RewardTerm):
    """1 for a response without a format error, else 0; an empty answer has one in every protocol.

    In a gated reward (see RewardTerms) it is what an answer of the right form earns at least.
    """

    def __call__(
        self, segments: Sequence[Segment], question: Question, passages: Passages
    ) -> float:
        """See RewardTerm."""
        return float(self.protocol.format_error(segments) is None)


class ActionTerm(RewardTerm):
    """A penalty for what was left undone: -1 without an answer, -1 without a search, or both.

    The action-level penalties with which https://arxiv.org/abs/2602.19526 keeps an F1 reward from
    teaching the policy to avoid answers. Turn the gate of the reward off to have them paid for
    responses of wrong form.

    Args:
        answer: charge a response without an answer.
        search: charge an answer without any search.
        weight: see RewardTerm.
    """

    def __init__(self, answer: bool = True, search: bool = True, weight: Weight = 0.1) -> None:
        super().__init__(weight)
        self.answer, self.search = answer, search

    def __call__(
        self, segments: Sequence[Segment], question: Question, passages: Passages
    ) -> float:
        """See RewardTerm."""
        silent = self.answer and not self.prediction(segments)
        return -float(silent) - float(self.search and not passages)
