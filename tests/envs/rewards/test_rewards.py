"""Rewards agree with recorded verdicts of the original evaluators, and are sane on any text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.envs import (
    DefaultReward,
    PaperCodeReward,
    PaperReward,
    Question,
    Reward,
    RewardFunction,
    Segment,
    get_reward,
)
from research_rl.envs.rewards.answers import (
    cover_exact_match,
    exact_match,
    f1_score,
    normalize_answer,
    plain_latex,
)
from research_rl.envs.rewards.paper_code import extract_prediction, validate_format
from research_rl.envs.rewards.presets import FORMAT_REWARD

ANY = st.text(alphabet=st.characters(exclude_categories=()))
WORDS = st.lists(st.sampled_from(["red", "house", "the", "old", "yes", "1952"]), max_size=5)
PRESETS = [DefaultReward(), PaperReward(), PaperCodeReward(), PaperCodeReward(chat=True)]
ROUNDED = 5e-5  # the recorded figures have four decimals


def cases(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


_TAG = "</?(?:think|search|result|answer)>"
_RESULT = re.compile(  # words behind a search, then its result up to the last </result> in reach
    rf"</search>(?:(?!{_TAG}).)*?(\s?<result>.*?</result>"
    r"(?:(?:(?!<(?:think|search|result|answer)>).)*</result>)?)",
    re.DOTALL,
)
_EOS = re.compile(r"(?:<\|im_end\|>|<\|endoftext\|>)+\Z")


def typed_segments(response: str) -> list[Segment]:
    """Guess who wrote what: the first result behind a search is the environment's."""
    segments, begin = [], 0
    for match in _RESULT.finditer(response):
        segments.append(Segment("policy", response[begin : match.start(1)]))
        segments.append(Segment("env", match[1]))
        begin = match.end()
    return [*segments, Segment("policy", response[begin:])]


def test_metrics_agree_with_the_published_evaluators(real_data: Path) -> None:
    columns = [
        (f1_score, "research_f1"),
        (exact_match, "hotpot_em"),
        (cover_exact_match, "flashrag_acc"),
    ]
    for row in cases(real_data, "metric_cases.jsonl"):
        assert normalize_answer(row["prediction"]) == row["normalized_prediction"], row["id"]
        for metric, column in columns:
            if isinstance(row[column], float):  # some evaluators raise without a gold answer
                value = metric(row["prediction"], row["golds"])
                assert value == pytest.approx(row[column], abs=ROUNDED), (row["id"], column)


def test_paper_code_agrees_with_the_original_on_every_recorded_text(real_data: Path) -> None:
    for row in cases(real_data, "format_cases.jsonl"):
        text = row["prompt"] + row["response"]
        prediction, error = extract_prediction(text, row["eos"])
        score = 0.0 if error else f1_score(prediction, row["golds"]) or FORMAT_REWARD
        assert score == pytest.approx(row["research_score"], abs=ROUNDED), row["id"]
        valid = validate_format(row["response"]) is None
        assert valid == row["research_valid"], row["id"]


def test_default_gives_the_sane_verdict_on_every_recorded_response(real_data: Path) -> None:
    for row in cases(real_data, "format_cases.jsonl"):
        response, ended = _EOS.subn("", row["response"])  # without eos it was cut off: never judged
        question = Question(row["id"], "?", tuple(row["golds"]))
        reward = DefaultReward()(typed_segments(response), question)
        value = reward.value if ended else 0.0
        assert value == pytest.approx(row["sane_reward"], abs=ROUNDED), (row["id"], reward)


def transcript(boxed: str, document: str = "d") -> list[Segment]:
    return [
        Segment("policy", "<think> t </think><search> q </search>"),
        Segment("env", f" <result>\n{document}\n</result>"),
        Segment("policy", f"<think> t </think><answer> \\boxed{{{boxed}}} </answer>"),
    ]


@given(WORDS, WORDS, WORDS)
def test_default_is_monotone_in_f1(gold: list[str], one: list[str], two: list[str]) -> None:
    question = Question("q", "?", (" ".join(gold) or "gold",))
    rewards = [
        DefaultReward()(transcript(" ".join(words) or "x"), question) for words in (one, two)
    ]
    low, high = sorted(rewards, key=lambda reward: reward.f1)
    assert low.value <= high.value
    assert low.value >= 0.1


@given(ANY, ANY)
def test_default_and_paper_do_not_read_what_was_retrieved(one: str, two: str) -> None:
    question = Question("q", "?", ("red house",))
    for preset in (DefaultReward(), PaperReward()):
        assert preset(transcript("house", one), question) == preset(
            transcript("house", two), question
        )


PIECES = ["<think>", "</think>", "<search>", "</search>", "<result>", "</result>", "<answer>"]
PIECES += ["</answer>", "\\boxed{", "\\boxed ", "\\text{", "}", "{", "~", "\\", "Assistant:", "é"]


@given(st.one_of(ANY, st.lists(st.sampled_from(PIECES), max_size=20).map("".join)), ANY)
@settings(max_examples=300)
def test_no_preset_raises_and_all_stay_in_range(text: str, gold: str) -> None:
    question = Question("q", text, (gold,))
    for preset in PRESETS:
        for segments in ([Segment("policy", text)], transcript(text), transcript("x", text), []):
            reward = preset(segments, question)
            assert 0.0 <= reward.value <= 1.0
            assert 0.0 <= reward.em <= 1.0
            assert 0.0 <= reward.f1 <= 1.0


def test_the_presets_differ_as_they_say() -> None:
    question = Question("q", "?", ("red house",))
    wrong, right = transcript("blue"), transcript("red house")
    unformed = [Segment("policy", "<answer> \\boxed{house} </answer>")]
    long = transcript("red " + " ".join(f"w{i}" for i in range(40)))

    def values(segments: list[Segment]) -> list[float]:
        return [preset(segments, question).value for preset in PRESETS[:3]]

    assert values(wrong) == [0.1, 0.1, 0.1]
    assert values(right) == [1.0, 1.0, 1.0]
    assert values(unformed) == pytest.approx([0.0, 2 / 3, 0.0])
    assert values(long) == pytest.approx([0.1, 2 / 43, 2 / 43])


def test_paper_code_keeps_the_quirk_of_the_assistant_marker() -> None:
    question = Question("q", "?", ("x",))
    segments = transcript("x", document="Assistant: hello")
    assert DefaultReward()(segments, question).value == 1.0
    assert PaperCodeReward()(segments, question).value == 0.0
    assert PaperCodeReward(chat=True)(segments, question).value == 1.0


@pytest.mark.parametrize(
    ("latex", "plain"),
    [
        ("\\text{New York}", "New York"),
        ("\\textbf{\\text{Paris}}", "Paris"),
        ("\\mathrm{NaCl}", "NaCl"),
        ("New~York", "New York"),
        ("New\\ York\\,City", "New York City"),
        ("50\\%", "50%"),
        ("{Paris}", "Paris"),
        ("\\frac{1}{2}", "1/2"),
        ("Simon \\& Garfunkel", "Simon & Garfunkel"),
        ("C:\\temp", "C:\\temp"),
        ("plain", "plain"),
    ],
)
def test_latex_becomes_words(latex: str, plain: str) -> None:
    assert plain_latex(latex) == plain


@pytest.mark.parametrize(
    ("boxed", "value"), [("The The", 1.0), ("the  the", 1.0), ("the", 0.1), ("!!!", 0.1)]
)
def test_a_gold_that_normalises_to_nothing_must_be_met_literally(boxed: str, value: float) -> None:
    reward = DefaultReward()(transcript(boxed), Question("q", "?", ("The The",)))
    assert reward.value == value
    assert reward.em == float(value == 1.0)


def test_presets_are_found_by_name_and_own_functions_are_taken() -> None:
    class Constant(RewardFunction):
        def __call__(self, segments: Any, question: Question) -> Reward:
            return Reward(0.5)

    own = Constant()
    assert get_reward(own) is own
    assert isinstance(get_reward("default"), DefaultReward)
    assert isinstance(get_reward("paper"), PaperReward)
    with pytest.raises(ValueError, match="did you mean 'paper-code'"):
        get_reward("paper_code")
