"""Prices that a whole group decides: what a rollout pays because another did the same with less.

Of three right rollouts of one question with 1, 1 and 2 searches, the third pays the price of one
search. Had all three searched twice, none would pay: the question may need it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Sequence

from research_rl.agents import Rollout
from research_rl.trainers.measures import SOLVED


class Price(ABC):
    """Charges rollouts for what they used, once their whole group is known.

    The environment pays each rollout by itself; a price is subtracted from that reward where
    rewards become advantages, and from what a Credit sees. ``rollout.reward`` stays what the
    environment paid.
    """

    @abstractmethod
    def charges(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return what each rollout pays, 0 or more, in their order.

        Args:
            rollouts: whole groups; those of one question (same id and text) are one group.
        """


class SearchPrice(Price):
    """Searches above the fewest with which the same question was answered in the same group.

    A right rollout i of a group pays ``min(limit, coef * max(0, n_i - m))``, where ``n_i`` is its
    number of searches and ``m`` the ``support``-th smallest number of searches among the right
    rollouts of its group. A rollout is right if its F1 is at least 0.99 and its form has no error.
    Wrong rollouts pay nothing, and neither does a group with fewer than ``support`` right ones. So
    a search for a hard question costs nothing as long as nobody answers it with fewer, and no
    rollout earns by being wrong.

    A constant price of a search is paid for hard questions too, and pushes the policy to search
    less where it must search. SAAS (https://arxiv.org/abs/2605.29796) finds out what a question
    needs from a second group that may not search; here the group itself says it.

    Args:
        coef: price of one search too many, in units of reward.
        limit: most that a rollout pays; below the reward of a right answer, so that right is
            always worth more than wrong.
        support: how many right rollouts must have got by with so few. 1 is the fewest of all; 2
            asks for a second witness, where an answer can be guessed (yes or no).

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(self, coef: float = 0.1, limit: float = 0.5, support: int = 1) -> None:
        for name, value in (("coef", coef), ("limit", limit)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if support < 1:
            raise ValueError(f"support must be at least 1, got {support}")
        self.coef, self.limit, self.support = coef, limit, support

    def charges(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return what each rollout pays; see Price."""
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for row, rollout in enumerate(rollouts):
            if rollout.reward.f1 >= SOLVED and rollout.reward.format_error is None:
                groups[rollout.question.id, rollout.question.text].append(row)
        paid = [0.0] * len(rollouts)
        for rows in groups.values():
            if len(rows) < self.support:
                continue
            enough = sorted(rollouts[row].num_searches for row in rows)[self.support - 1]
            for row in rows:
                extra = max(0, rollouts[row].num_searches - enough)
                paid[row] = min(self.limit, self.coef * extra)
        return paid
