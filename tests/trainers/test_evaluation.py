"""Means over rollouts: every question weighs the same, whatever batch it came in."""

from __future__ import annotations

import json

import pytest

from research_rl.agents.types import Rollout, Sequence
from research_rl.envs.types import Question, Reward
from research_rl.trainers.measures import average, measure, prediction_row, summarize, transcript


def rollout(f1: float, queries: list[str], **metadata: object) -> Rollout:
    sequence = Sequence([1, 2])
    sequence.append_sampled(5, -1.0)
    sequence.append_given([6, 7])
    reward = Reward(f1, f1, float(f1 == 1), None if f1 else "no answer", "Paris" if f1 else "")
    question = Question("q", "Where?", ("Paris",), metadata)
    turns = [*[f"<search>{q}</search>" for q in queries], "<answer>"]
    results = [" <result>r</result>"] * len(queries)
    return Rollout(question, sequence, reward, turns, results, "answer", queries)


def test_measures_of_a_rollout() -> None:
    found = measure(rollout(1.0, ["The  boss of A"], hops=1, chain=["the boss of a"]))
    assert found == {
        "reward": 1.0,
        "f1": 1.0,
        "em": 1.0,
        "format": 1.0,
        "searches": 1.0,
        "found_nothing": 0.0,
        "sampled_tokens": 1.0,
        "response_tokens": 3.0,
        "truncated": 0.0,
        "overridden_searches": 0.0,
        "chain": 1.0,
        "hops": 1.0,
    }


def test_a_query_that_the_next_one_replaced_is_counted() -> None:
    r = rollout(1.0, ["b"])
    r.turns[0] = "<search>a</search" + "<search>b</search>"
    assert measure(r)["overridden_searches"] == 1.0
    r.finish_reason = "length"
    assert measure(r)["truncated"] == 1.0


@pytest.mark.parametrize("queries", [[], ["b"], ["b", "a"], ["a", "b", "b"]])
def test_only_the_exact_chain_counts(queries: list[str]) -> None:
    assert measure(rollout(1.0, queries, chain=["a", "b"]))["chain"] == 0.0


def test_means_by_hop() -> None:
    rows = [rollout(1.0, ["x"], hops=1), rollout(0.0, ["x"], hops=2), rollout(0.5, [], hops=2)]
    found = summarize(rows)
    assert found["f1"] == 0.5
    assert (found["f1_1hop"], found["f1_2hop"]) == (1.0, 0.25)
    assert (found["searches_1hop"], found["searches_2hop"]) == (1.0, 0.5)
    assert found["format"] == pytest.approx(2 / 3)
    assert "hops" not in found


def test_hops_that_are_no_number_end_no_training() -> None:
    found = summarize([rollout(1.0, [], hops="2"), rollout(0.0, [], hops="many")], by_hop=("f1",))
    assert (found["f1"], found["f1_2hop"]) == (0.5, 1.0)


def test_only_some_measures_by_hop() -> None:
    found = summarize([rollout(1.0, ["x"], hops=3)], by_hop=("f1",))
    assert [name for name in found if name.endswith("hop")] == ["f1_3hop"]


def test_a_measure_is_averaged_where_it_exists() -> None:
    found = summarize([rollout(1.0, ["a"], chain=["a"]), rollout(1.0, [])])
    assert found["chain"] == 1.0
    assert "chain" not in summarize([rollout(1.0, [])])


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one rollout"):
        average([])


def test_predictions_are_json() -> None:
    row = prediction_row(rollout(1.0, ["a"]))
    assert json.loads(json.dumps(row)) == row
    assert row["prediction"] == "Paris"
    assert row["text"] == "<search>a</search> <result>r</result><answer>"


def test_a_transcript_alternates() -> None:
    assert transcript(rollout(0.0, ["a", "b"])).count("<result>") == 2
