"""The signal check says why an iteration taught nothing, and says nothing of a healthy one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from doubles.sample_rollouts import rollout, rollouts
from hypothesis import given
from hypothesis import strategies as st

from research_rl.agents.types import Rollout
from research_rl.envs.types import Reward
from research_rl.trainers.health.signal import (
    Tally,
    message,
    shortened,
    tally,
    verdicts,
    verdicts_of_imitation,
)


def dead(answer: str = "Paris is the capital", **changes: Any) -> Rollout:
    """A rollout as a model writes it that has never seen the form."""
    silent = replace(
        rollout("format"),
        turns=[answer],
        results=[],
        queries=[],
        passage_ids=[],
        finish_reason="no_answer",
        reward=Reward(0.0, format_error="no <answer> ... </answer>"),
    )
    return replace(silent, **changes)


def names(found: list[Rollout], **metrics: float) -> list[str]:
    return [one.name for one in verdicts(tally(found), metrics)]


def test_a_healthy_iteration_has_no_verdict() -> None:
    assert names(rollouts(), grad_norm=0.3, mismatch_5pct=0.01) == []


def test_a_dead_model_is_told_with_its_commonest_error_and_an_example() -> None:
    found = verdicts(tally([dead() for _ in range(8)]), {"grad_norm": 0.0})
    assert [one.name for one in found] == ["no_difference", "same_format_error", "zero_gradient"]
    text = message(found, 1)
    assert "in none of 1 groups do two rewards differ (8 rollouts, mean reward 0.00" in text
    assert "all 8 rollouts have the format error «no <answer> ... </answer>»" in text
    assert "«Paris is the capital»" in text
    assert "research sft" in text
    assert all(one.remedy in text for one in found)


def test_questions_that_are_all_solved_are_no_illness() -> None:
    assert names([rollout("right") for _ in range(8)], grad_norm=0.0) == []


def test_wrong_answers_of_good_form_are_told_as_equal_rewards() -> None:
    assert names([rollout("wrong") for _ in range(4)], grad_norm=0.0) == [
        "no_difference",
        "zero_gradient",
    ]


def test_a_policy_that_always_abstains_is_told() -> None:
    lazy = [replace(rollout("wrong"), reward=Reward(0.1, prediction="Unknown.")) for _ in range(8)]
    assert names(lazy) == ["always_abstains"]
    asked = replace(lazy[0].question, metadata={"unanswerable": True})
    rightly = [replace(one, question=asked, reward=Reward(1.0, 1.0, 1.0)) for one in lazy]
    assert names(rightly) == []
    assert names([*lazy[:4], *(rollout("wrong") for _ in range(4))]) != ["always_abstains"]


def test_one_group_that_differs_is_enough() -> None:
    found = [dead(), dead(), rollout("right", id="other"), rollout("wrong", id="other")]
    assert names(found, grad_norm=0.1) == []


def test_rules_without_groups_learn_from_what_tells_groups_apart() -> None:
    apart = [dead(), dead(), *(rollout("wrong", id="other") for _ in range(2))]
    counts = tally(apart)
    assert [one.name for one in verdicts(counts, {})] == ["no_difference"]
    assert verdicts(counts, {}, compares_groups=False) == []
    (one, _) = verdicts(tally([dead(), dead()]), {}, compares_groups=False)
    assert one.name == "no_difference"
    assert "no two rewards differ in all 1 groups (2 rollouts" in one.said


def test_a_price_that_tells_rollouts_apart_is_seen() -> None:
    equal = [rollout("wrong"), rollout("wrong")]
    assert names(equal) == ["no_difference"]
    assert verdicts(tally(equal, [0.1, 0.0]), {}) == []
    evened = [rollout("wrong"), rollout("format")]
    assert names(evened) == []
    assert [one.name for one in verdicts(tally(evened, [0.0, 0.0]), {})] == ["no_difference"]


@pytest.mark.parametrize(("norm", "told"), [(0.2, False), (0.0, True)])
def test_turns_that_are_paid_for_themselves_teach_without_rewards(norm: float, told: bool) -> None:
    counts = tally([rollout("wrong"), rollout("wrong")])
    found = verdicts(counts, {"grad_norm": norm}, credits_turns=True)
    assert [one.name for one in found] == (["no_difference", "zero_gradient"] if told else [])


def test_single_rollouts_are_compared_with_one_another() -> None:
    alone = [rollout("wrong", id=str(n)) for n in range(4)]
    assert names(alone) == ["no_difference"]
    assert names([*alone, rollout("right", id="right")]) == []


def test_searches_that_find_nothing() -> None:
    blank = [replace(one, queries=[" "], passage_ids=[["p1"]]) for one in rollouts()]
    assert names(blank) == ["empty_searches"]
    nothing = [replace(one, passage_ids=[[]]) for one in rollouts()]
    assert names(nothing) == ["empty_searches"]
    assert names([*nothing[1:], rollouts()[0]]) == []


def test_rollouts_that_all_run_out_of_tokens() -> None:
    cut = Reward(0.0, format_error="the episode was cut off before an answer")
    found = [dead(finish_reason="length", reward=cut) for _ in range(8)]
    assert names(found) == ["no_difference", "out_of_tokens", "same_format_error"]


@pytest.mark.parametrize(
    ("share", "corrected", "told"),
    [(0.05, False, False), (0.3, False, True), (0.3, True, False), (0.9, True, True)],
)
def test_log_probs_apart(share: float, corrected: bool, told: bool) -> None:
    metrics = {"mismatch_5pct": share, "mismatch_mean": 0.04, "grad_norm": 1.0}
    found = verdicts(tally(rollouts()), metrics, ["sampling in bfloat16"], corrected)
    assert [one.name for one in found] == (["mismatch"] if told else [])
    if told:
        assert "sampling in bfloat16" in found[0].remedy
        assert ("correction" in found[0].remedy) is not corrected


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [(9.5e-6, 1.8e-2, True), (None, 0.5, False), (9.5e-6, 2e-5, False), (4e-3, 6e-3, False)],
)
def test_servers_that_kept_old_weights(before: float | None, now: float, told: bool) -> None:
    metrics = {"mismatch_5pct": 0.01, "mismatch_mean": now, "grad_norm": 1.0}
    found = verdicts(tally(rollouts()), metrics, corrected=True, before=before)
    assert [one.name for one in found] == (["stale_servers"] if told else [])
    if told:
        assert "0.018 nats from the learner's, before that it was 9.5e-06" in found[0].said


def test_imitation_is_judged_by_its_gradient_alone() -> None:
    assert verdicts_of_imitation({"grad_norm": 0.3}) == []
    assert verdicts_of_imitation({}) == []
    (one,) = verdicts_of_imitation({"grad_norm": 0.0})
    assert one.name == "zero_gradient"
    assert "research sft" not in one.remedy, "that is what is running"


def test_nothing_is_said_of_nothing() -> None:
    assert verdicts(Tally(), {}) == []


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 12))
def test_counts_of_ranks_add_up(kinds: list[bool], cut: int) -> None:
    found = [rollout("right", id=f"{n}") if kind else dead() for n, kind in enumerate(kinds)]
    parts = tally(found[:cut]) + tally(found[cut:])
    whole = tally(found)
    assert (parts.rollouts, parts.rewards, parts.errors) == (
        whole.rollouts,
        whole.rewards,
        whole.errors,
    )


@given(st.text(max_size=400))
def test_an_example_is_one_short_line(text: str) -> None:
    assert len(shortened(text)) <= 163
    assert "\n" not in shortened(text)
