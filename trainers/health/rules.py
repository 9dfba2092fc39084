"""The rules of a guard: signs of a collapse, each a metric that is too far from where it should be.

``Rule("the form breaks", "train/format", "below", factor=0.7)`` is broken where the share of right
form falls below 70 % of what it was early in the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass
class Rule:
    """One sign of a collapse: a metric is too far from what it was early in the run, or too far.

    Args:
        name: of the rule in the log.
        metric: its name as it is logged, such as ``train/entropy``.
        sense: above or below: the side of the limit on which the rule is broken.
        factor: the limit is ``early * factor + plus``, where early is the metric's median over the
            first iterations.
        plus: see factor.
        unless_below: a second metric; the rule counts only while this one is at least what it was
            early. For signs that are bad only while the score does not fall.
        limit: a fixed limit in place of the one that is made from early values; it is judged from
            the first iteration on, so that a run that was ill from its start is seen too.
    """

    name: str
    metric: str
    sense: Literal["above", "below"]
    factor: float = 1.0
    plus: float = 0.0
    unless_below: str | None = None
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.sense not in ("above", "below"):
            raise ValueError(f"sense must be above or below, got {self.sense!r}")
        if self.limit is not None and (self.factor, self.plus) != (1.0, 0.0):
            raise ValueError(
                f"a rule must have a limit or factor and plus, got both in {self.name!r}; leave "
                "one out"
            )

    def broken(self, now: Mapping[str, float], early: Mapping[str, float]) -> str | None:
        """Return the reason if the rule is broken; None if not, or if the metric is not logged."""
        if self.metric not in now or (self.limit is None and self.metric not in early):
            return None
        gate = self.unless_below
        if gate is not None and (gate not in early or now.get(gate, 0.0) < early[gate]):
            return None
        before, value = early.get(self.metric), now[self.metric]
        limit = self.limit
        if limit is None:
            limit = early[self.metric] * self.factor + self.plus
        if (value <= limit) if self.sense == "above" else (value >= limit):
            return None
        told = f"{self.name}: {self.metric} is {value:.3g}, {self.sense} {limit:.3g}"
        return told if before is None else f"{told} (early in the run {before:.3g})"


RULES = (
    Rule("the form breaks", "train/format", "below", factor=0.7),
    Rule("tags break", "health/broken_tags", "above", plus=0.3),
    Rule("the reward falls", "train/reward", "below", factor=0.4),
    Rule("it stops searching", "train/searches", "below", factor=0.4),
    Rule("it answers closed-book", "health/closed_book", "above", plus=0.4),
    Rule("it forges results", "health/forged_results", "above", plus=0.2),
    Rule("it repeats itself", "health/repetition", "above", plus=0.3),
    Rule("it repeats queries", "health/duplicate_queries", "above", plus=0.4),
    Rule("rollouts grow", "train/sampled_tokens", "above", factor=2.5),
    Rule("rollouts run out of tokens", "train/truncated", "above", plus=0.4),
    Rule("entropy explodes", "train/entropy", "above", factor=3.0, plus=0.3),
    Rule("the policy runs away", "train/kl", "above", factor=1.0, plus=0.5),
    Rule("sampler and learner part", "train/mismatch_k3", "above", factor=3.0, plus=0.02),
    Rule("no group teaches", "health/all_wrong", "above", plus=0.4),
    Rule(
        "right answers grow unlikely while the reward rises",
        "health/right_logprob",
        "below",
        factor=2.0,
        plus=-0.2,
        unless_below="train/reward",
    ),
    Rule("hardly a rollout has good form", "train/format", "below", limit=0.05),
    Rule("hardly a group has a right answer", "health/all_wrong", "above", limit=0.98),
    Rule("hardly a rollout is finished", "train/truncated", "above", limit=0.95),
    Rule("sampler and learner are two policies", "train/mismatch_5pct", "above", limit=0.5),
)
"""The rules of a guard without rules of its own; docs/guards.md explains each threshold."""
