"""Confidence intervals of means, and tests whether two methods differ.

Questions are resampled, because a data set is a sample of questions. Every function gives the same
figures for the same values in any order, skips None, and returns how many values it used; those
that draw at random take a seed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntervalMethod = Literal["percentile", "bca"]

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST_RESAMPLES = 100
"""Of fewer the ends of an interval would be single draws."""
_BLOCK = 1 << 22  # drawn indices held at once
_SLACK = 1e-12  # two sums that differ by less are equal


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; all None where n is 0."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """Method ``a`` against ``b`` on the questions that both have a value for.

    ``difference`` is the mean of a - b, ``low`` and ``high`` its paired bootstrap interval,
    ``p_value`` the two-sided one of the paired permutation test. ``unpaired`` counts questions
    that only one of them has a value for. All but the counts are None where n is 0.
    """

    mean_a: float | None
    mean_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    unpaired: int


@dataclass(frozen=True)
class McNemar:
    """Two methods that are each right or wrong on the same questions.

    ``only_a`` and ``only_b`` count the questions that one of them alone has right; ``p_value`` is
    that of the exact two-sided test, None where n is 0.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float | None
    unpaired: int = 0

    @property
    def n(self) -> int:
        """Questions that both have a value for."""
        return self.both + self.only_a + self.only_b + self.neither


def bootstrap_interval(
    values: Iterable[float | None],
    method: IntervalMethod = "percentile",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean of one value a question, with its bootstrap interval.

    Several values of one question (seeds, samples) go through ``by_question`` first.

    Args:
        values: one for each question; None is skipped.
        method: ``percentile``, or ``bca``: bias-corrected and accelerated (Efron 1987), better for
            few questions and rates near 0 or 1.
        level: confidence, between 0 and 1.
        resamples: how many; at least 100.
        seed: of the resampling.

    Raises:
        ValueError: an option is out of range or a value is not finite.
    """
    _check(level, resamples)
    sample = _sample(values)
    if not len(sample):
        return Interval(None, None, None, 0)
    centre = float(sample.mean())
    low, high = _bounds(sample, method, level, resamples, seed)
    return Interval(centre, low, high, len(sample))


def by_question(rows: Iterable[tuple[Hashable, float | None]]) -> list[float]:
    """Return the mean value of each question, from (question id, value) rows; None is skipped.

    Resampling these resamples whole questions, whatever number of values each has.
    """
    groups: dict[Hashable, list[float]] = {}
    for question, value in rows:
        if value is not None:
            groups.setdefault(question, []).append(value)
    return [sum(group) / len(group) for group in groups.values()]


def paired_test(
    a: Mapping[str, float | None],
    b: Mapping[str, float | None],
    method: IntervalMethod = "percentile",
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """Compare two methods on the questions that both have a value for.

    The permutation test swaps the two methods' values at random within each question; with at most
    20 questions that differ all 2^m swaps are counted, so that the p-value is exact.

    Args:
        a: a value for each question id.
        b: the same for the other method.
        method: how the interval of the difference is made, see ``bootstrap_interval``.
        level: confidence, between 0 and 1.
        resamples: of the bootstrap, and swaps of the permutation test.
        seed: of both.

    Raises:
        ValueError: an option is out of range or a value is not finite.
    """
    _check(level, resamples)
    pairs, unpaired = _pairs(a, b)
    if not pairs:
        return Paired(None, None, None, None, None, None, 0, unpaired)
    table = _finite(np.asarray(pairs, np.float64))
    gaps = np.sort(table[:, 0] - table[:, 1])
    low, high = _bounds(gaps, method, level, resamples, seed)
    return Paired(
        mean_a=float(table[:, 0].mean()),
        mean_b=float(table[:, 1].mean()),
        difference=float(gaps.mean()),
        low=low,
        high=high,
        p_value=_permutation(gaps[gaps != 0], resamples, seed),
        n=len(pairs),
        unpaired=unpaired,
    )


def mcnemar_test(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> McNemar:
    """Compare two methods by their right (1) and wrong (0) answers, with McNemar's exact test.

    Only the questions on which they differ tell anything; under equal methods each of those is a
    fair coin (https://en.wikipedia.org/wiki/McNemar%27s_test, the exact binomial test).

    Raises:
        ValueError: a value is neither 0 nor 1.
    """
    pairs, unpaired = _pairs(a, b)
    for value in (value for pair in pairs for value in pair):
        if value not in (0, 1):
            raise ValueError(f"McNemar's test needs values of 0 or 1, got {value!r}")
    count = {(x, y): 0 for x in (0, 1) for y in (0, 1)}
    for one, other in pairs:
        count[int(one), int(other)] += 1
    p_value = _coin(count[1, 0], count[0, 1]) if pairs else None
    return McNemar(count[1, 1], count[1, 0], count[0, 1], count[0, 0], p_value, unpaired)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number, in their order (Holm 1979).

    If each is compared with 0.05, the chance of any false positive is at most 0.05.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if resamples < FEWEST_RESAMPLES:
        raise ValueError(f"resamples must be at least {FEWEST_RESAMPLES}, got {resamples}")


def _sample(values: Iterable[float | None]) -> FloatArray:
    """The values that are not None, sorted so that their order does not change the result."""
    return np.sort(_finite(np.asarray([v for v in values if v is not None], np.float64)))


def _finite(values: FloatArray) -> FloatArray:
    if not np.isfinite(values).all():
        raise ValueError("values must be finite numbers or None, got nan or infinity")
    return values


def _pairs(
    a: Mapping[str, float | None], b: Mapping[str, float | None]
) -> tuple[list[tuple[float, float]], int]:
    """The pairs of values of shared questions, by id, and how many questions lack a partner."""
    pairs, unpaired = [], 0
    for question in sorted(a.keys() | b.keys()):
        one, other = a.get(question), b.get(question)
        if one is not None and other is not None:
            pairs.append((one, other))
        elif one is not None or other is not None:
            unpaired += 1
    return pairs, unpaired


def _bounds(
    sample: FloatArray, method: IntervalMethod, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Low and high end of the interval of the mean of a sorted sample."""
    if sample[0] == sample[-1]:
        return float(sample[0]), float(sample[0])
    means = np.sort(_resampled_means(sample, resamples, np.random.default_rng(seed)))
    tails = ((1 - level) / 2, (1 + level) / 2)
    if method == "bca":
        tails = _bca_tails(sample, means, tails)
    elif method != "percentile":
        raise ValueError(f"method must be percentile or bca, got {method!r}")
    low, high = np.quantile(means, tails)
    return float(low), float(high)


def _resampled_means(sample: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Means of samples drawn with replacement: (resamples,).

    With few different values (0 and 1, numbers of searches) the number of times that each is drawn
    is sampled at once, which is much faster; else indices are drawn.
    """
    values, counts = np.unique(sample, return_counts=True)
    size = len(sample)
    if len(values) <= max(2, size // 20):
        drawn = rng.multinomial(size, counts / size, resamples)
        return np.asarray(drawn @ values / size, np.float64)
    means = np.empty(resamples)
    block = max(1, _BLOCK // size)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        means[start:stop] = sample[rng.integers(0, size, (stop - start, size))].mean(axis=1)
    return means


def _bca_tails(
    sample: FloatArray, means: FloatArray, tails: tuple[float, float]
) -> tuple[float, float]:
    """The shares of the sorted resampled means between which a BCa interval lies.

    Efron, Better Bootstrap Confidence Intervals (1987), equations 2.3 and 4.4: bias from the share
    of means below the sample's, acceleration from the jackknife.
    """
    normal, centre = NormalDist(), sample.mean()
    below = float((means < centre).mean() + (means == centre).mean() / 2)
    bias = normal.inv_cdf(min(max(below, 1 / len(means)), 1 - 1 / len(means)))
    # leaving value i out moves the mean by (centre - x_i) / (n - 1): the factor cancels
    gaps = sample - centre
    acceleration = float((gaps**3).sum() / (6 * (gaps**2).sum() ** 1.5))
    shifted = [bias + normal.inv_cdf(tail) for tail in tails]
    low, high = (normal.cdf(bias + z / (1 - acceleration * z)) for z in shifted)
    return low, high


def _permutation(gaps: FloatArray, swaps: int, seed: int) -> float:
    """Two-sided p-value of the sign-flip test for the differences that are not 0."""
    if not len(gaps):
        return 1.0
    observed = abs(float(gaps.sum())) - _SLACK * float(np.abs(gaps).sum())
    if len(gaps) <= 20:
        sums = np.zeros(1)
        for gap in gaps:
            sums = np.concatenate([sums + gap, sums - gap])
        return float((np.abs(sums) >= observed).mean())
    rng = np.random.default_rng(seed)
    values, counts = np.unique(np.abs(gaps), return_counts=True)
    # of m equal gaps the number that keep their sign is binomial
    kept = rng.binomial(counts, 0.5, (swaps, len(values)))
    sums = (2 * kept - counts) @ values
    extreme = int((np.abs(sums) >= observed).sum())
    return (extreme + 1) / (swaps + 1)  # the observed order is one of the swaps


def _coin(heads: int, tails: int) -> float:
    """Two-sided p-value that a fair coin falls at least as unevenly."""
    tosses, few = heads + tails, min(heads, tails)
    if not tosses:
        return 1.0
    whole = math.lgamma(tosses + 1) - tosses * math.log(2)
    ways = (whole - math.lgamma(k + 1) - math.lgamma(tosses - k + 1) for k in range(few + 1))
    return min(1.0, 2 * sum(map(math.exp, ways)))
