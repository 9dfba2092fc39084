"""Rules for which demonstrations are kept: limits on reward, searches and form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from research_rl.agents import Rollout
from research_rl.trainers.measures import SOLVED


@dataclass(frozen=True)
class Keep:
    """What a demonstration must be.

    Args:
        min_reward: least reward.
        right: whether the answer must be right (F1 of 0.99 or more).
        max_searches: most searches; None for any number.
        min_searches: least searches.
        repeats: whether a query may be asked twice.
        each: most rollouts of one question that are kept, the best ones: highest reward, then
            fewest searches, then the shortest.
    """

    min_reward: float = 0.5
    right: bool = False
    max_searches: int | None = None
    min_searches: int = 0
    repeats: bool = False
    each: int = 1

    def __post_init__(self) -> None:
        if self.each < 1:
            raise ValueError(f"each must be at least 1, got {self.each}")

    def reason_against(self, rollout: Rollout) -> str | None:
        """Return why a rollout is thrown away, None if it may be kept."""
        if rollout.finish_reason != "answer":
            return f"it ended without an answer ({rollout.finish_reason or 'unfinished'})"
        if rollout.reward.format_error:
            return f"its form: {rollout.reward.format_error}"
        if rollout.reward.value < self.min_reward:
            return f"its reward is below {self.min_reward:g}"
        if self.right and rollout.reward.f1 < SOLVED:
            return "its answer is not right"
        if self.max_searches is not None and rollout.num_searches > self.max_searches:
            return f"it searches more than {self.max_searches} times"
        if rollout.num_searches < self.min_searches:
            return f"it searches less than {self.min_searches} times"
        queries = [" ".join(query.casefold().split()) for query in rollout.queries]
        if not self.repeats and len(set(queries)) < len(queries):
            return "it repeats a query"
        return None

    def best(self, rollouts: Sequence[Rollout]) -> tuple[list[Rollout], int]:
        """Return the rollouts of a question that are kept, and how many good ones are not."""
        ranked = sorted(
            rollouts, key=lambda r: (-r.reward.value, r.num_searches, sum(map(len, r.turns)))
        )
        distinct = list({tuple(one.turns): one for one in reversed(ranked)}.values())[::-1]
        return distinct[: self.each], len(rollouts) - len(distinct[: self.each])
