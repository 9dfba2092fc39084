"""The price of searches against numbers worked out by hand, and its properties."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from doubles.sample_rollouts import rollout
from hypothesis import given
from hypothesis import strategies as st

from research_rl.agents.types import Rollout
from research_rl.trainers.algorithms import Batch
from research_rl.trainers.algorithms.advantages import group_advantages
from research_rl.trainers.collect import Collector, payments
from research_rl.trainers.credit.price import SearchPrice


def played(searches: int, verdict: str = "right", question: str = "Who?") -> Rollout:
    one = rollout(verdict, question=question)  # type: ignore[arg-type]
    return replace(one, queries=["q"] * searches)


ONE_TOO_MANY = [played(1), played(1), played(2), played(3, "wrong")]


def test_only_right_rollouts_pay_and_only_above_the_fewest() -> None:
    assert SearchPrice(0.1).charges(ONE_TOO_MANY) == [0.0, 0.0, 0.1, 0.0]
    assert payments(ONE_TOO_MANY, SearchPrice(0.1)) == [1.0, 1.0, 0.9, 0.1]


def test_a_hard_question_costs_nothing() -> None:
    hard = [played(3), played(3), played(0, "wrong"), played(1, "wrong")]
    assert SearchPrice().charges(hard) == [0.0] * 4
    assert SearchPrice().charges([played(4, "wrong"), played(1, "wrong")]) == [0.0, 0.0]


def test_a_right_answer_in_a_wrong_form_neither_pays_nor_sets_the_fewest() -> None:
    malformed = played(0, "format")
    malformed.reward = replace(malformed.reward, f1=1.0, em=1.0)
    assert SearchPrice(0.1).charges([malformed, played(2), played(2)]) == [0.0, 0.0, 0.0]


def test_no_more_than_the_limit() -> None:
    assert SearchPrice(0.2, limit=0.5).charges([played(0), played(2), played(9)]) == [0, 0.4, 0.5]


def test_a_second_witness() -> None:
    guessed = [played(0), played(2), played(2), played(3)]
    assert SearchPrice(0.1).charges(guessed) == pytest.approx([0, 0.2, 0.2, 0.3])
    assert SearchPrice(0.1, support=2).charges(guessed) == pytest.approx([0, 0, 0, 0.1])
    assert SearchPrice(0.1, support=2).charges([played(5)]) == [0.0], "one has no second"


def test_groups_are_those_of_the_batch_wherever_their_rows_stand() -> None:
    mixed = [played(1, question="a"), played(2, question="b"), played(2, question="a")]
    assert SearchPrice(0.1).charges(mixed) == [0.0, 0.0, 0.1]
    groups = Batch.from_rollouts(mixed, 0).groups.tolist()
    assert groups == [0, 1, 0]


def test_the_advantages_by_hand() -> None:
    batch = Batch.from_rollouts(ONE_TOO_MANY, 0)
    paid = torch.tensor(payments(ONE_TOO_MANY, SearchPrice(0.1)))
    found = group_advantages(paid, batch.groups, scale_by_std=False)
    assert found.tolist() == pytest.approx([0.25, 0.25, 0.15, -0.65])  # the mean is 0.75


def test_a_group_that_only_the_price_tells_apart_is_not_replaced() -> None:
    counts = iter([1, 2])
    play = lambda asked, seeds: [replace(played(next(counts)), question=q) for q in asked]  # noqa: E731
    questions = [played(1).question]
    collect = Collector(play, 2, 1, seed=1, price=SearchPrice())
    assert len(collect(questions, 0, questions)) == 2
    assert collect.num_sampled == 2


@pytest.mark.parametrize(
    "wrong", [{"coef": 0}, {"coef": -1}, {"limit": 0.0}, {"coef": float("nan")}, {"support": 0}]
)
def test_a_price_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        SearchPrice(**wrong)  # type: ignore[arg-type]


GROUPS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(["right", "wrong", "format"]), st.integers(0, 2)),
    min_size=1,
    max_size=12,
)


@given(GROUPS, st.integers(1, 3))
def test_properties(rows: list[tuple[int, str, int]], support: int) -> None:
    """Whole groups on any rank, in any order, are charged alike; right stays above wrong."""
    price = SearchPrice(0.3, support=support)
    found = [played(n, verdict, f"q{number}") for n, verdict, number in rows]
    due = dict(zip(map(id, found), price.charges(found), strict=True))
    for number in range(3):  # as if each group were on a rank of its own
        own = [one for one in reversed(found) if one.question.text == f"q{number}"]
        assert [due[id(one)] for one in own] == price.charges(own)
        right = [one for one in own if one.reward.f1 == 1]
        assert all(due[id(one)] == 0 for one in own if one not in right)
        assert sum(due[id(one)] == 0 for one in right) >= min(support, len(right))
        assert all(0 <= due[id(one)] <= 0.5 for one in own)
        earned = {one.num_searches: due[id(one)] for one in right}
        assert [earned[n] for n in sorted(earned)] == sorted(earned.values())
