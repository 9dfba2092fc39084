"""Intervals and tests against figures worked by hand, and agreement of judges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.trainers.evaluate.measures.agreement import (
    agreement_of,
    cohen_kappa,
    fleiss_kappa,
    pairwise_agreement,
)
from research_rl.trainers.evaluate.measures.statistics import (
    Interval,
    bootstrap_interval,
    by_question,
    holm,
    mcnemar_test,
    paired_test,
)

METHODS = ("percentile", "bca")


def keyed(values: list[float | None]) -> dict[str, float | None]:
    return {f"q{number:03}": value for number, value in enumerate(values)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_values", [2, 400])
def test_interval_of_a_mean_is_the_normal_one_for_many_questions(
    method: str, num_values: int
) -> None:
    values = [float(number % num_values) / (num_values - 1) for number in range(400)]
    interval = bootstrap_interval(values, method)  # type: ignore[arg-type]
    half = 1.96 * np.std(values) / math.sqrt(400)  # hand-checked: 0.5 +- 0.049 for 0 and 1
    assert interval.mean == pytest.approx(0.5)
    assert interval.low == pytest.approx(0.5 - half, abs=0.006)
    assert interval.high == pytest.approx(0.5 + half, abs=0.006)
    assert interval.n == 400


def test_two_values_have_an_interval_that_can_be_counted_out() -> None:
    # Of two values the resampled mean is 0, 0.5 or 1 with shares 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0], level=0.4) == Interval(0.5, 0.5, 0.5, 2)
    assert bootstrap_interval([0.0, 1.0], level=0.9) == Interval(0.5, 0.0, 1.0, 2)


def test_bca_moves_towards_the_long_tail() -> None:
    skewed = [0.0] * 45 + [1.0] * 5
    plain, bca = (bootstrap_interval(skewed, method) for method in ("percentile", "bca"))  # type: ignore[arg-type]
    assert plain.low is not None
    assert plain.high is not None
    assert bca.low is not None
    assert bca.high is not None
    assert bca.low > plain.low
    assert bca.high > plain.high


def test_gaps_are_passed_over_and_nothing_has_no_interval() -> None:
    assert bootstrap_interval([None, 1.0, None, 1.0]) == Interval(1.0, 1.0, 1.0, 2)
    assert bootstrap_interval([None]) == Interval(None, None, None, 0)
    assert by_question([("a", 1.0), ("b", 0.0), ("a", 0.0), ("c", None)]) == [0.5, 0.0]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.randoms())
def test_an_interval_does_not_depend_on_the_order(values: list[float], random: object) -> None:
    shuffled = sorted(values, key=lambda _: random.random())  # type: ignore[attr-defined]
    first, second = (bootstrap_interval(v, resamples=100) for v in (values, shuffled))
    assert first == second
    assert first.low is not None
    assert first.high is not None
    assert min(values) - 1e-9 <= first.low <= first.high <= max(values) + 1e-9


def test_paired_test_counts_all_swaps_of_few_differences() -> None:
    a = keyed([1, 1, 1, 1, 1, 0, 1])
    b = keyed([0, 0, 0, 0, 0, 0, 1])
    result = paired_test(a, b)
    assert result.difference == pytest.approx(5 / 7)
    assert result.p_value == 2 / 2**5  # all five differences one way, or all the other
    assert (result.n, result.unpaired) == (7, 0)
    assert mcnemar_test(a, b).p_value == pytest.approx(2 / 2**5)


def test_paired_test_of_many_differences_agrees_with_the_exact_test() -> None:
    a = keyed([1.0] * 40 + [0.0] * 22 + [1.0] * 100)
    b = keyed([0.0] * 40 + [1.0] * 22 + [1.0] * 100)
    sampled, exact = paired_test(a, b), mcnemar_test(a, b)
    assert (exact.only_a, exact.only_b, exact.both, exact.neither) == (40, 22, 100, 0)
    # 2 * sum of C(62, k) for k <= 22, over 2^62
    by_hand = 2 * sum(math.comb(62, k) for k in range(23)) / 2**62
    assert exact.p_value == pytest.approx(by_hand)
    assert sampled.p_value == pytest.approx(by_hand, abs=0.006)
    assert sampled.low is not None
    assert sampled.low > 0


def test_questions_without_a_partner_are_told() -> None:
    result = paired_test({"a": 1.0, "b": None, "c": 1.0, "d": None}, {"a": 1.0, "b": 0.0})
    assert (result.n, result.unpaired, result.p_value) == (1, 2, 1.0)
    assert paired_test({"a": 1.0}, {"b": 1.0}).difference is None
    assert mcnemar_test({"a": 1.0}, {"b": 1.0}).p_value is None


def test_a_large_mcnemar_neither_over_nor_underflows() -> None:
    a = keyed([1.0] * 3000 + [0.0] * 2900)
    b = keyed([0.0] * 3000 + [1.0] * 2900)
    p_value = mcnemar_test(a, b).p_value
    assert p_value == pytest.approx(0.1975, abs=0.001)  # normal: z = 99 / sqrt(5900) = 1.289


def test_equal_methods_are_seldom_told_apart() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        one, other = rng.integers(0, 2, (2, 60)).astype(float).tolist()
        p_value = paired_test(keyed(one), keyed(other), resamples=1000).p_value
        hits += p_value is not None and p_value < 0.05
    assert hits <= 20  # 10 expected


def test_holm_corrects_the_smallest_most() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 1.0}, "level must lie between 0 and 1"),
        ({"resamples": 3}, "resamples must be at least 100"),
        ({"method": "normal"}, "method must be percentile or bca"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval([0.0, 1.0], **options)  # type: ignore[arg-type]


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([0.0, math.nan])
    with pytest.raises(ValueError, match=r"0 or 1, got 0\.5"):
        mcnemar_test({"a": 0.5}, {"a": 1.0})


def test_cohens_kappa_by_hand() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, expected 0.5*0.6 + 0.5*0.4 = 0.5
    cases = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False,) * 2] * 15
    assert cohen_kappa(cases) == pytest.approx(0.4)


def test_fleiss_kappa_by_hand() -> None:
    # Pairs agree: 3/3, 1/3, 1/3, 3/3 -> 2/3; share of yes 6/12 -> expected 1/2; kappa 1/3
    cases = [[True] * 3, [True, True, False], [True, False, False], [False] * 3]
    assert fleiss_kappa(cases) == pytest.approx(1 / 3)


def test_agreement_leaves_out_failures_and_says_how_many() -> None:
    verdicts = {
        "a": [True, False, None, True],
        "b": [True, False, True, False],
        "c": [True, True, True, None],
    }
    pair = pairwise_agreement(verdicts)[0]
    assert (pair.judges, pair.n, pair.left_out) == (("a", "b"), 3, 1)
    assert pair.percent == pytest.approx(200 / 3)
    three = agreement_of(verdicts)
    assert (three.n, three.left_out, three.percent) == (2, 2, 50.0)


def test_agreement_of_nothing_and_of_one_verdict_only() -> None:
    assert agreement_of({"a": [None], "b": [True]}).percent is None
    same = agreement_of({"a": [True, True], "b": [True, True]})
    assert (same.percent, same.kappa) == (100.0, None)
    with pytest.raises(ValueError, match="at least two judges"):
        agreement_of({"a": [True]})
    with pytest.raises(ValueError, match="the same cases"):
        agreement_of({"a": [True], "b": []})
