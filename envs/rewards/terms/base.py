"""The contract of a reward term: a number for a finished episode, and how much it weighs.

``EvidenceTerm(weight={0: 0.0, 20: 0.2})`` weighs nothing at first, 0.1 in iteration 10 and 0.2 from
iteration 20 on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Self, TypeAlias

from research_rl.envs.protocols import RESEARCH, Answer, Protocol, Segment
from research_rl.envs.rewards.answers import plain_latex
from research_rl.envs.types import Passage, Question

Passages: TypeAlias = Sequence[Sequence[Passage]]
"""What each search of the episode found, in order; an empty row is a search that found nothing."""
Weight: TypeAlias = float | Mapping[int, float]
"""A number, or numbers by iteration; between two of them it changes in a straight line."""


class RewardTerm(ABC):
    """One summand of a reward: 0 for nothing, 1 for all there is to earn, below 0 for a price.

    Args:
        weight: by which it is multiplied: a number, or a schedule by iteration of training.
            Validation, and whoever does not train, gets the last one.

    Raises:
        ValueError: the weight is not finite, or a schedule is empty.
    """

    protocol: Protocol = RESEARCH
    """The language of the responses; set by ``speaking``."""

    def __init__(self, weight: Weight = 1.0) -> None:
        schedule = weight if isinstance(weight, Mapping) else {0: weight}
        points = sorted((int(step), float(value)) for step, value in schedule.items())
        if not points or not all(math.isfinite(value) for _, value in points):
            raise ValueError(
                f"weight must be a finite number or such numbers by iteration, got {weight!r}"
            )
        self._steps, self._values = [s for s, _ in points], [v for _, v in points]

    def weight_at(self, iteration: int | None = None) -> float:
        """Return the weight in an iteration; None is after the last change."""
        if iteration is None or iteration >= self._steps[-1]:
            return self._values[-1]
        after = bisect_right(self._steps, iteration)
        if after == 0:
            return self._values[0]
        (s, t), (a, b) = self._steps[after - 1 : after + 1], self._values[after - 1 : after + 1]
        return a + (b - a) * (iteration - s) / (t - s)

    def speaking(self, protocol: Protocol) -> Self:
        """Return the term for responses in another language: a copy, unless it is the same."""
        if protocol == self.protocol:
            return self
        twin = copy(self)
        twin.protocol = protocol
        return twin

    @abstractmethod
    def __call__(
        self, segments: Sequence[Segment], question: Question, passages: Passages
    ) -> float:
        """Return what the episode earns before the weight; must not raise on any text.

        Args:
            segments: every turn of the policy and every result, in order.
            question: with its gold answers and metadata.
            passages: what each search found.
        """

    def prediction(self, segments: Sequence[Segment]) -> str:
        """Return the answer in plain words, "" where the last turn does not answer."""
        turn = self.last_turn(segments)
        action = self.protocol.parse(turn) if turn else None
        return plain_latex(action.text) if isinstance(action, Answer) else ""

    def last_turn(self, segments: Sequence[Segment]) -> str:
        """Return what the policy wrote last, "" where it wrote nothing."""
        return next((s.text for s in reversed(segments) if s.kind == "policy"), "")
