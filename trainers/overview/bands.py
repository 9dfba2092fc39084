"""The health of a run in words: each sign with its value now, early in the run, and its limits.

The limits are the rules of the CollapseGuard, and what is held against them is the number that is
shown: the median of three values. It crosses a limit whenever two in a row do, so a page warns of
what a guard would warn of.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter
from statistics import median
from typing import Literal, NamedTuple

from research_rl.trainers.health import RULES, Rule
from research_rl.trainers.overview.folder import RunFolder

State = Literal["well", "was ill", "ill", "too few"]
EARLY, LATE = 5, 3
"""How many values the median of a run's start takes, and that of now."""
_FEWEST = 2
"""A single value is no sign yet."""
_NEVER = "no reward was ever paid"
_MEANING = {
    "train/reward": ("reward", "What a rollout is paid on average. It should rise."),
    "train/format": (
        "right form",
        "Share of rollouts whose form is right. It should be near 1 and stay there.",
    ),
    "train/searches": (
        "searches a rollout",
        "How often the policy searches. A fall to nothing means that it guesses.",
    ),
    "train/sampled_tokens": (
        "tokens a rollout",
        "What the policy writes, without results. Growth without a better score is rambling.",
    ),
    "train/truncated": (
        "cut off",
        "Share of rollouts that ran out of tokens before they were done. It should be near 0.",
    ),
    "train/entropy": (
        "entropy, nats a token",
        "How undecided the policy is. A slow fall is learning, a jump up is falling apart.",
    ),
    "train/kl": (
        "distance to the start, nats a token",
        "How far the policy is from the model that it began as. Small and slowly rising is well.",
    ),
    "train/mismatch_k3": (
        "sampler and learner apart",
        "How far the probabilities of sampling and of learning differ. It should be near 0.",
    ),
    "train/mismatch_5pct": (
        "tokens that are 5 % off",
        "Share of tokens whose probability differs between sampling and learning.",
    ),
    "health/broken_tags": (
        "broken blocks",
        "Share of rollouts with a block that is not closed or not opened. It should be near 0.",
    ),
    "health/closed_book": (
        "answers without a search",
        "Share of answers that were given without looking anything up.",
    ),
    "health/forged_results": (
        "forged results",
        "Share of rollouts in which the policy wrote a search result by itself. It should be 0.",
    ),
    "health/repetition": (
        "repetition",
        "Share of four-word phrases in a thought that stood there before. It should be near 0.",
    ),
    "health/duplicate_queries": (
        "repeated queries",
        "Share of searches that ask what was asked before in the same rollout.",
    ),
    "health/all_wrong": (
        "hopeless questions",
        "Share of questions of which no rollout got any part right. They teach nothing.",
    ),
    "health/right_logprob": (
        "log-prob of right answers",
        "How likely right rollouts are. Falling while the reward rises announces a collapse.",
    ),
}


class Band(NamedTuple):
    """A sign of health.

    Args:
        name: in words.
        meaning: how it is to be read.
        now: median of its latest values; the state goes by it.
        early: median of its first values; None where there are too few for it to differ from now.
        limits: from where it counts as ill, in words.
        state: of it; "too few" where there is a single value.
        since: the step from which a rule has been broken; None where none is.
        broken: the rules that were broken, in words.
    """

    name: str
    meaning: str
    now: float
    early: float | None
    limits: str
    state: State
    since: int | None
    broken: list[str]


def bands_of(run: RunFolder, rules: Sequence[Rule] = RULES) -> list[Band]:
    """Return the signs that the run logged, the ill ones first."""
    by_metric: dict[str, list[Rule]] = {}
    for rule in rules:
        by_metric.setdefault(rule.metric, []).append(rule)
    found = [_band(run, metric, its) for metric, its in by_metric.items() if run.metric(metric)]
    order = ("ill", "was ill", "well", "too few")
    return sorted(found, key=lambda band: order.index(band.state))


def _band(run: RunFolder, metric: str, rules: Sequence[Rule]) -> Band:
    points = run.metric(metric)
    name, meaning = _MEANING.get(metric, (metric, ""))
    values = [value for _, value in points]
    rewards = run.metric("train/reward")
    early = [_early(run, rule) for rule in rules]
    since, broken = None, dict[str, None]()
    for place, (step, _) in enumerate(points[_FEWEST - 1 :], _FEWEST):
        now = {metric: median(values[max(0, place - LATE) : place])}
        last = bisect_right(rewards, step, key=itemgetter(0))
        if paid := rewards[max(0, last - LATE) : last]:
            now.setdefault("train/reward", median([value for _, value in paid]))
        told = [r.name for r, e in zip(rules, early, strict=True) if r.broken(now, e)]
        since = (step if since is None else since) if told else None
        broken |= dict.fromkeys(told)
    state: State = "too few" if len(values) < _FEWEST else "was ill" if broken else "well"
    if since is not None:
        state = "ill"
    if metric == "train/reward" and not any(values):
        state, since, broken = "ill", points[0][0], {_NEVER: None}
    return Band(
        name,
        meaning,
        median(values[-LATE:]),
        median(values[:EARLY]) if len(values) > LATE else None,
        _limits(rules, values),
        state,
        since,
        list(broken),
    )


def _early(run: RunFolder, rule: Rule) -> dict[str, float]:
    names = [name for name in (rule.metric, rule.unless_below) if name and run.metric(name)]
    return {name: median([v for _, v in run.metric(name)[:EARLY]]) for name in names}


def _limits(rules: Sequence[Rule], values: Sequence[float]) -> str:
    """From where the sign is ill: of several limits on a side the one that is met first."""
    early = median(values[:EARLY])
    nearest: dict[str, float] = {}
    for rule in rules:
        limit = early * rule.factor + rule.plus if rule.limit is None else rule.limit
        side = f"{rule.sense}{{}}{' while the reward rises' if rule.unless_below else ''}"
        choose = min if rule.sense == "above" else max
        nearest[side] = choose(limit, nearest.get(side, limit))
    shown = {side: f" {x:.0f}" if abs(x) >= 100 else f" {x:.2g}" for side, x in nearest.items()}
    return "; ".join(side.format(limit) for side, limit in shown.items())
