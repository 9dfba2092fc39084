r"""Rewards of a finished episode: the three presets of ReSearch, and two of its rivals.

``default`` pays ``max(F1, 0.1)`` when the format is right and 0 otherwise; ``paper`` pays F1, or
0.1 for the right format alone (equation 2 of arXiv 2503.19470); ``paper-code`` pays what the code
of that paper pays (:mod:`research_rl.envs.rewards.paper_code`). ``em`` pays an exact match,
``cover`` an answer that stands anywhere in the prediction. None raises, whatever the text. Where
the answer stands in a response, and what its right form is, the protocol says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Self

from research_rl.envs.protocols import RESEARCH, Answer, Protocol, Segment
from research_rl.envs.rewards.answers import (
    cover_exact_match,
    exact_match,
    f1_score,
    plain_latex,
    said_literally,
    with_words,
)
from research_rl.envs.rewards.fair import fair_scores
from research_rl.envs.rewards.paper_code import extract_prediction
from research_rl.envs.types import Passage, Question, Reward

FORMAT_REWARD = 0.1
"""Paid for a wrong answer in the right format (ReSearch, equation 2)."""


class RewardFunction(ABC):
    """Judges a finished episode: every turn of the policy and every result, in order.

    ``original_rollout`` True makes the episode play the rules of the paper's code too: an empty
    query is searched, and tags inside passages are left as they are.
    """

    original_rollout: bool = False
    protocol: Protocol = RESEARCH
    """The language of the responses; set by ``speaking``."""

    part_names: tuple[str, ...] = ()
    """Names of the parts of its verdicts, for a reward that is a sum."""

    def speaking(self, protocol: Protocol) -> Self:
        """Return the reward for responses in another language: a copy, unless it is the same.

        Raises:
            ValueError: the reward is made for one language alone.
        """
        if protocol == self.protocol:
            return self
        twin = copy(self)
        twin.protocol = protocol
        return twin

    @abstractmethod
    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return the verdict; must not raise on any text."""

    def judge(
        self,
        segments: Sequence[Segment],
        question: Question,
        passages: Sequence[Sequence[Passage]],
    ) -> Reward:
        """Return the verdict where it is known what was found; here that changes nothing.

        Args:
            segments: every turn of the policy and every result, in order.
            question: with its gold answers and metadata.
            passages: what each search found, in order.
        """
        return self(segments, question)

    def at(self, iteration: int | None) -> None:
        """Be told the iteration of training, for a reward that changes with it.

        Args:
            iteration: from 0; None where nothing is trained, and for validation.
        """
        return


class DefaultReward(RewardFunction):
    """``max(F1, 0.1)`` if the format is right, else 0: monotone in F1, blind to retrieved text.

    The prediction is the last box of the answer in plain words (:func:`plain_latex`). It is
    compared as a reader does, numbers as numbers, in any script: see :func:`fair_scores`. A gold
    answer without a word ("The The", "!!!") must be met literally, case aside.
    """

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return the verdict."""
        error = self.protocol.format_error(segments)
        turns = [segment.text for segment in segments if segment.kind == "policy"]
        action = self.protocol.parse(turns[-1]) if turns else None
        prediction = plain_latex(action.text) if isinstance(action, Answer) else ""
        f1, em = self.compare(prediction, question.answers) if prediction else (0.0, 0.0)
        return Reward(self.value(f1, error), f1, em, error, prediction)

    def value(self, f1: float, error: str | None) -> float:
        """Return what an answer of this F1 in this form is paid."""
        return max(f1, FORMAT_REWARD) if error is None else 0.0

    def compare(self, prediction: str, answers: Sequence[str]) -> tuple[float, float]:
        """Return F1 and exact match."""
        return fair_scores(prediction, answers)


class PaperReward(DefaultReward):
    """F1 if it is above 0, else 0.1 if the format is right, else 0; format does not gate F1."""

    def value(self, f1: float, error: str | None) -> float:
        """Return equation 2 of arXiv 2503.19470."""
        return f1 or (FORMAT_REWARD if error is None else 0.0)

    def compare(self, prediction: str, answers: Sequence[str]) -> tuple[float, float]:
        """Return F1 and exact match by the published formula."""
        if said_literally(prediction, answers):
            return 1.0, 1.0
        wordy = with_words(answers)
        return f1_score(prediction, wordy), exact_match(prediction, wordy)


class ExactMatchReward(PaperReward):
    """1 for an exact match in the right form, else 0; by the published formula, as Search-R1 pays.

    arXiv 2503.09516. Unlike there, the form must be right too.
    """

    def value(self, f1: float, error: str | None) -> float:
        """Return 1 where the F1 of ``__call__`` is that of an exact match."""
        return float(f1 == 1.0 and error is None)

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return the verdict."""
        found = super().__call__(segments, question)
        return replace(found, value=self.value(found.em, found.format_error))


class CoverReward(ExactMatchReward):
    """1 if a gold answer stands anywhere in the prediction, in the right form, else 0.

    Kind to long answers, and so open to a policy that names everything: ``research lint-reward``
    shows it. For comparison with those who pay it.
    """

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return the verdict."""
        found = super().__call__(segments, question)
        covered = found.em  # 0 without a prediction, 1 for one that is literally right
        if found.prediction and not covered:
            covered = cover_exact_match(found.prediction, with_words(question.answers))
        return replace(found, value=self.value(covered, found.format_error))


class PaperCodeReward(RewardFunction):
    """What the paper's code pays, its quirks included.

    Args:
        chat: the prompt is a chat prompt; the original cuts the response out of the whole text at
            the first ``assistant`` marker, and the marker depends on it.
    """

    original_rollout = True
    _EOS = "<|endoftext|>"  # an episode that was cut off is not judged, so each one here has ended

    def speaking(self, protocol: Protocol) -> Self:
        """Return the reward itself.

        Raises:
            ValueError: the responses are not in ReSearch's tags.
        """
        if protocol != RESEARCH:
            raise ValueError(
                "the reward paper-code must meet the protocol research, whose code it repeats, got "
                f"{protocol.name!r}; use default, paper, em or cover"
            )
        return self

    def __init__(self, chat: bool = False) -> None:
        self.marker = "<|im_start|>assistant\n" if chat else "Assistant:"

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return the verdict."""
        response = "".join(segment.text for segment in segments)
        text = f"{question.text}\n{self.marker}{response}{self._EOS}"
        prediction, error = extract_prediction(text, self._EOS)
        if error is not None:
            return Reward(0.0, format_error=error)
        f1 = f1_score(prediction, question.answers)
        em = exact_match(prediction, question.answers)
        return Reward(f1 or FORMAT_REWARD, f1, em, None, prediction)
