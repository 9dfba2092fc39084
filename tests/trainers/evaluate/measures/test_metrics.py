"""Measures of a prediction: the published verdicts, what cannot be told, and self-correction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.agents.methods.research import Prediction
from research_rl.envs.types import UNANSWERABLE, Passage, Question
from research_rl.trainers.evaluate.measures.answers import (
    MEASURES,
    answer_in_passages,
    answer_scores,
    format_errors,
    measure_prediction,
)
from research_rl.trainers.evaluate.measures.self_correction import (
    SelfCorrection,
    self_correction,
)

A = Passage("a", '"Oslo"\nOslo is the capital of Norway.')
B = Passage("b", "Norway\nNorway is a kingdom.")
X = Passage("x", '"Rome"\nRome is in Italy.')
BY_ID = Question("1", "Capital?", ("Oslo",), {"gold_ids": ["a", "b"]})
BY_TITLE = Question("2", "Capital?", ("Oslo",), {"supporting_titles": ["oslo", "Norway"]})
BY_ANSWER = Question("3", "Capital?", ("Oslo",))


def predict(question: Question, *results: tuple[Passage, ...], text: str = "Oslo") -> Prediction:
    return Prediction(
        question,
        text,
        queries=tuple(f"query {number}" for number in range(len(results))),
        passages=results,
        finish_reason="answer",
        sampled_tokens=7,
        result_tokens=5 * len(results),
        seconds=0.5,
    )


def test_answers_are_scored_as_the_published_evaluators_do(real_data: Path) -> None:
    rows = [json.loads(x) for x in (real_data / "metric_cases.jsonl").open(encoding="utf-8")]
    columns = {"em": "hotpot_em", "f1": "research_f1", "cover_em": "flashrag_acc"}
    compared = 0
    for row in rows:
        scores = answer_scores(row["prediction"], row["golds"])
        for name, column in columns.items():
            if isinstance(row[column], float):  # HotpotQA's own raises without a gold answer
                assert scores[name] == pytest.approx(row[column], abs=5e-5), (row["id"], name)
                compared += 1
        if row["prediction"].strip() and row["golds"]:
            prediction = Prediction(Question("q", "?", tuple(row["golds"])), row["prediction"])
            assert {name: measure_prediction(prediction)[name] for name in scores} == scores
    assert compared == 3 * len(rows) - sum(not row["golds"] for row in rows)


def test_every_measure_of_a_searched_answer() -> None:
    prediction = replace(
        predict(BY_ID, (X, A), (A,), text="the Oslo."), queries=("Capital  of x", "capital of X")
    )
    assert measure_prediction(prediction) == {
        "em": 1.0,
        "f1": 1.0,
        "cover_em": 1.0,
        "folded_em": 1.0,
        "answered": 1.0,
        "support_recall": 0.5,
        "support_complete": 0.0,
        "title_recall": None,
        "answer_in_results": 1.0,
        "searches": 2.0,
        "distinct_queries": 1.0,
        "sampled_tokens": 7.0,
        "result_tokens": 10.0,
        "seconds": 0.5,
        "format": 1.0,
        "failed": 0.0,
    }


def test_titles_stand_in_for_ids_and_are_told_beside_them() -> None:
    measures = measure_prediction(predict(BY_TITLE, (A,), (B,)))
    assert (measures["support_recall"], measures["title_recall"]) == (1.0, 1.0)
    both = Question("4", "?", ("Oslo",), {**BY_ID.metadata, **BY_TITLE.metadata})
    other_corpus = measure_prediction(predict(both, (Passage("77", A.contents),)))
    assert (other_corpus["support_recall"], other_corpus["title_recall"]) == (0.0, 0.5)


def test_what_cannot_be_told_is_none() -> None:
    measures = measure_prediction(predict(BY_ANSWER))
    assert measures["support_recall"] is None
    assert measures["answer_in_results"] == 0.0
    no_golds = measure_prediction(predict(Question("5", "?", ())))
    assert [no_golds[name] for name in ("em", "f1", "cover_em")] == [None, None, None]
    assert no_golds["answered"] == 1.0
    uncounted = replace(predict(BY_ID, (A,)), result_tokens=0)
    assert measure_prediction(uncounted)["result_tokens"] is None


def test_an_empty_answer_is_wrong_even_where_the_gold_normalises_to_nothing() -> None:
    measures = measure_prediction(predict(Question("6", "?", ("The The",)), text=" "))
    assert (measures["em"], measures["answered"]) == (0.0, 0.0)


def test_a_failed_prediction_is_a_gap_and_not_a_wrong_answer() -> None:
    failed = replace(predict(BY_ID, text=""), error="server is down", finish_reason="error")
    measures = measure_prediction(failed)
    assert measures.keys() == MEASURES.keys()
    assert measures["failed"] == 1.0
    assert measures["em"] is None


@pytest.mark.parametrize(
    ("text", "gold", "em", "folded"),
    [
        ("1.5 million", "1,500,000", 0.0, 1.0),
        ("-5", "5", 1.0, 0.0),
        ("東京。", "東京", 0.0, 1.0),
        ("the Oslo", "Oslo", 1.0, 1.0),
    ],
)
def test_folded_em_stands_beside_the_published_one(
    text: str, gold: str, em: float, folded: float
) -> None:
    measures = measure_prediction(predict(Question("6", "?", (gold,)), text=text))
    assert (measures["em"], measures["folded_em"]) == (em, folded)


def test_answers_are_looked_for_as_whole_words() -> None:
    assert answer_in_passages(("us",), [Passage("r", "Russia\nRussia is large.")]) == 0.0
    assert answer_in_passages(("U.S.",), [Passage("r", "US\nthe US is large.")]) == 1.0
    assert answer_in_passages(("yes", "The The"), [A]) is None
    assert answer_in_passages(("首都",), [Passage("j", "日本の首都は東京である。")]) == 1.0
    none = Question("4", "Capital?", UNANSWERABLE, {"unanswerable": True})
    found = Passage("u", "Oslo\nIts mayor is unknown.")
    assert measure_prediction(predict(none, (found,)))["answer_in_results"] is None
    assert self_correction(predict(none, (found,), (X,))) == SelfCorrection()
    passage = Passage("h", "Hawke’s Bay\nIn 1990–95 it was the “Fruit Bowl” of the land.")
    for answer in ("Hawke's Bay", "1990-95", '"Fruit Bowl"', "the fruit bowl"):
        assert answer_in_passages((answer,), [passage]) == 1.0, answer
    assert answer_in_passages(("Zu\u0308rich",), [Passage("z", "Zürich, die Stadt.")]) == 1.0


def test_format_errors_are_counted_by_class() -> None:
    wrong = replace(predict(BY_ID), format_error="boxed: twice")
    also = replace(wrong, format_error="boxed: empty")
    failed = replace(wrong, error="down", finish_reason="error")
    assert format_errors([wrong, also, failed, predict(BY_ID)]) == {"boxed": 2}


def test_a_miss_that_is_requeried_and_one_that_is_given_up() -> None:
    counts = self_correction(predict(BY_ID, (X,), (A,), (X,)))
    assert counts == SelfCorrection(1, 1, misses=2, requeries=1, recoveries=1)
    assert (counts.requery_rate, counts.recovery_rate) == (0.5, 1.0)


def test_asking_the_same_again_is_no_requery() -> None:
    prediction = replace(predict(BY_TITLE, (X,), (X,)), queries=("Oslo?", "oslo? "))
    assert self_correction(prediction) == SelfCorrection(1, 1, misses=2, repeats=1)
    assert self_correction(prediction).recovery_rate is None


def test_a_later_search_may_recover() -> None:
    counts = self_correction(predict(BY_ANSWER, (X,), (B,), (A,)))
    assert counts == SelfCorrection(1, 1, misses=2, requeries=2, recoveries=1, later_recoveries=1)
    assert (counts.recovery_rate, counts.eventual_recovery_rate) == (0.5, 1.0)


def test_nothing_is_missed_once_all_is_there() -> None:
    assert self_correction(predict(BY_ID, (A, B), (X,), (X,))) == SelfCorrection(questions=1)


def test_questions_without_known_facts_and_failures_do_not_count() -> None:
    closed = predict(Question("7", "?", ("yes",)), (X,), (A,))
    failed = replace(predict(BY_ID, (X,)), error="down")
    assert self_correction(closed) == self_correction(failed) == SelfCorrection()
    assert SelfCorrection().requery_rate is None


@given(st.lists(st.lists(st.sampled_from([A, B, X]), max_size=3), max_size=6))
def test_counts_of_self_correction_are_consistent(results: list[list[Passage]]) -> None:
    prediction = predict(BY_ID, *map(tuple, results))
    counts, measures = self_correction(prediction), measure_prediction(prediction)
    assert counts.misses >= counts.requeries + counts.repeats
    assert counts.requeries >= counts.recoveries + counts.later_recoveries
    assert measures["support_recall"] is not None
    hits = len(results) - counts.misses
    assert hits >= 2 * measures["support_recall"] - 1


@given(st.text(), st.lists(st.text(), max_size=3))
def test_scores_lie_between_0_and_1_on_any_text(text: str, golds: list[str]) -> None:
    scores = answer_scores(text, golds)
    assert all(0.0 <= value <= 1.0 for value in scores.values())
    assert scores["em"] <= scores["cover_em"]
