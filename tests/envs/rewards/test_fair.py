"""Answers compared as a reader does: what is the same is paid in full, what is not is not."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs import Question, get_reward
from research_rl.envs.protocols import Segment
from research_rl.envs.rewards.fair import answer_tokens, fair_scores

SAME = [
    ("3.14", "3.14"),
    ("3.140", "3.14"),
    ("10", "10.0"),
    ("1,500,000", "1.5 million"),
    ("−5", "-5"),
    ("+5", "+5"),
    ("２０２４", "2024"),
    ("٢٠٢٤", "2024"),
    ("C++", "c++"),
    ("Zu\u0308rich", "Zürich"),
    ("“Peace”", '"Peace"'),
    ("O’Neill", "O'Neill"),
    ("東京。", "東京"),
    ("Ｔｏｋｙｏ", "tokyo"),
    ("U.S.", "US"),
    ("the Beatles", "Beatles"),
    ("$5", "5"),
    ("-$5", "$-5"),
    (".5", "0.5"),
    ("1,500人", "1500人"),
    ("co\u00adoperate", "cooperate"),
    ("Paris.", "Paris"),
    ("İstanbul", "istanbul"),
    ("1990-95", "1990–95".replace("–", "-")),
]
OTHERS = [
    ("314", "3.14"),
    ("5", "-5"),
    ("10", "1.0"),
    ("C#", "C++"),
    ("C", "C++"),
    ("007", "7"),
    ("1,5", "15"),
    ("5", ".5"),
    ("106", "10⁶"),
    ("$5", "-$5"),
    ("5度", "-5度"),
    ("1990, Million Dollar Baby", "1990000000 Dollar Baby"),
    ("की", "का"),
    ("yes indeed", "yes"),
    ("", "Paris"),
    ("!!!", "Paris"),
]


@pytest.mark.parametrize(("prediction", "gold"), SAME)
def test_what_is_the_same(prediction: str, gold: str) -> None:
    assert fair_scores(prediction, [gold]) == (1.0, 1.0)
    assert fair_scores(gold, [prediction]) == (1.0, 1.0)


@pytest.mark.parametrize(("prediction", "gold"), OTHERS)
def test_what_is_not_the_same(prediction: str, gold: str) -> None:
    f1, em = fair_scores(prediction, [gold])
    assert em == 0.0
    assert f1 < 1.0


def test_parts_are_paid_in_part() -> None:
    assert fair_scores("boss Domlor", ["Domlor"])[0] == pytest.approx(2 / 3)
    assert 0 < fair_scores("日本の東京", ["東京"])[0] < 1
    assert fair_scores("Paris", ["London", "Paris"]) == (1.0, 1.0)
    assert fair_scores("Paris", []) == (0.0, 0.0)
    assert fair_scores("!!!", ["!!!"]) == (1.0, 1.0), "an answer without a word is met literally"


@pytest.mark.parametrize(
    ("reward", "paid"), [("default", 0.1), ("paper", 1.0), ("paper-code", 1.0)]
)
def test_the_default_is_fair_and_the_published_ones_stay(reward: str, paid: float) -> None:
    text = r"<think> x </think> <answer> \boxed{314} </answer>"
    verdict = get_reward(reward)([Segment("policy", text)], Question("q", "?", ("3.14",)))
    assert verdict.value == paid


@given(st.text(max_size=60))
def test_every_text_is_read_and_is_its_own_answer(text: str) -> None:
    tokens = answer_tokens(text)
    assert all(tokens)
    assert answer_tokens(unicodedata.normalize("NFD", text)) == tokens
    if text.strip():
        assert fair_scores(text, [text]) == (1.0, 1.0)


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9
    )
)
def test_a_number_is_the_number_however_it_is_written(value: object) -> None:
    plain, grouped = f"{value:f}", f"{value:,f}"
    assert answer_tokens(plain) == answer_tokens(grouped) == answer_tokens(f" {plain} .")


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_two_numbers_are_the_same_only_if_they_are(a: int, b: int) -> None:
    assert (fair_scores(str(a), [str(b)])[1] == 1.0) == (a == b)
