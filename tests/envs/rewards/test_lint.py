"""The linter of rewards: the default is clean, the paper's are not, each kind of hole is seen."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from research_rl.envs.protocols import Segment, format_error
from research_rl.envs.rewards import lint
from research_rl.envs.rewards.answers import f1_score
from research_rl.envs.rewards.lint import FINDING_KINDS, Finding, lint_reward, load_reward
from research_rl.envs.rewards.lint_cases import CHEATS, LADDER, SAME_ANSWER, mutations, tag_strings
from research_rl.envs.rewards.presets import DefaultReward, RewardFunction, get_reward
from research_rl.envs.types import Question, Reward


def cases(findings: Sequence[Finding], kind: str) -> set[str]:
    return {f.case for f in findings if f.kind == kind}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches little: what a test of another kind of hole needs."""
    monkeypatch.setattr(lint, "tag_strings", lambda: iter(()))
    monkeypatch.setattr(lint, "mutations", lambda: iter(()))


def test_the_default_passes() -> None:
    assert lint_reward(get_reward("default")) == []


def test_the_paper_s_code_shows_its_defects() -> None:
    found = lint_reward(get_reward("paper-code"))
    assert cases(found, "non-monotone") == {
        "Paris among 29 other words",
        r"\text{} around the right answer",
        r"\textbf{} around the right answer",
        "a thought that mentions <answer>",
        "a thought that says Assistant:",
        "a passage holds <answer>",
        "a passage holds <think>",
        "a passage says Assistant:",
        "the question says Assistant:",
    }
    assert cases(found, "hackable") >= {
        "reversed think tags",
        "an answer inside the thought",
        "an answer before the search",
        "a result that the policy wrote",
        "junk behind the answer",
        "an empty box",
        "the answer stands in a passage",
        "a string of tags",
        "a mutation",
    }
    assert {f.kind for f in found} == {"non-monotone", "hackable"}


def test_the_paper_s_formula_shows_its_defects() -> None:
    found = lint_reward(get_reward("paper"))
    assert cases(found, "non-monotone") == {"Paris among 29 other words"}
    assert cases(found, "hackable") >= {"no thought at all", "junk behind the answer"}
    assert "an answer before the search" not in cases(found, "hackable"), "it has no last answer"


def test_the_cases_are_what_they_say() -> None:
    scores = [f1_score(c.turns[0].split("{")[1].split("}")[0], ["Paris"]) for c in LADDER]
    assert scores == sorted(scores)
    assert [scores[0], scores[-1]] == [0.0, 1.0]
    assert scores[1] == pytest.approx(2 / 31), "below the 0.1 of a wrong answer"
    for case in (*LADDER, *SAME_ANSWER):
        assert format_error(case.segments()) is None, case.name
    names = [c.name for c in (*LADDER, *SAME_ANSWER)]
    assert len(set(names)) == len(names)
    stuffed = {"every city in one box"}  # well formed, and paid by its own F1
    assert {c.case.name for c in CHEATS if format_error(c.case.segments()) is None} == stuffed


def test_the_search_is_small_and_repeatable() -> None:
    strings = [case.turns for case in tag_strings(3)]
    assert len(strings) == len(set(strings)) == 8 * 2 + 8**2 * 3 + 8**3 * 4
    assert [m.turns for m in mutations(50)] == [m.turns for m in mutations(50)]
    assert len({m.turns for m in mutations(200)}) > 100


class Holed(DefaultReward):
    """Is paid by format, except where the words of a hole are met."""

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return the verdict."""
        text = "".join(s.text for s in segments)
        if "\x00" in text:
            raise UnicodeError("no null here")
        if "\ud800" in text:
            return Reward(random.random())
        if "!!!" in text:
            return Reward(float("nan"))
        if text.startswith("<think>" * 9):
            time.sleep(0.02)
        return super().__call__(segments, question)


@pytest.mark.usefixtures("few")
def test_each_kind_of_hole_is_seen() -> None:
    found = lint_reward(Holed(), seconds=0.015)
    assert cases(found, "crash") == {"a null character"}
    assert cases(found, "non-deterministic") == {"lone surrogates"}
    assert cases(found, "out-of-range") == {"no letters in the box"}
    assert "only thoughts opened" in cases(found, "slow")
    assert next(f for f in found if f.kind == "crash").reason == "raised UnicodeError: no null here"


@pytest.mark.usefixtures("few")
def test_the_range_is_given() -> None:
    class Fined(RewardFunction):
        def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
            paid = DefaultReward()(segments, question).value
            return Reward(paid if paid else -1.0)

    assert cases(lint_reward(Fined()), "out-of-range")
    assert lint_reward(Fined(), low=-1.0) == []


@pytest.mark.usefixtures("few")
def test_a_reward_that_returns_a_number_is_told() -> None:
    found = lint_reward(lint._Plain(lambda segments, question: 1.0))  # type: ignore[arg-type, return-value]
    assert {f.kind for f in found} == {"crash"}
    assert found[0].reason == "returned float, not a Reward"


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        lint.main(list(args))
    return int(end.value.code or 0), capsys.readouterr().out


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "default") == (0, "default: no hole found\n")
    status, text = run(capsys, "paper", "--limit", "1")
    assert status == 1
    assert "non-monotone (1): " + FINDING_KINDS["non-monotone"] in text
    assert "more; --limit" in text


def test_the_command_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, "paper-code", "--json")
    rows = json.loads(text)["findings"]
    assert status == 1
    assert {"kind", "case", "text", "reason"} == set(rows[0])


def test_a_reward_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_lint_file.py").write_text(
        "from research_rl.envs.rewards.presets import DefaultReward\n"
        "my_reward = DefaultReward()\n"
        "def my_function(segments, question):\n    return my_reward(segments, question)\n"
        "class Needs(DefaultReward):\n    def __init__(self, weight): pass\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_reward", "my_function", "DefaultReward"):
        assert run(capsys, f"my_lint_file.{name}")[0] == 0
    with pytest.raises(ValueError, match="cannot be made without arguments"):
        load_reward("my_lint_file.Needs")
    with pytest.raises(ValueError, match=r"got my_lint_file\.number, a int"):
        load_reward("my_lint_file.number")
    with pytest.raises(ValueError, match="has no attribute 'other'"):
        load_reward("my_lint_file.other")
    (tmp_path / "my_broken_file.py").write_text("def my_reward(:\n")
    with pytest.raises(ValueError, match=r"SyntaxError: .*\(my_broken_file.py, line 1\)"):
        load_reward("my_broken_file.my_reward")
    with pytest.raises(ValueError, match="No module named 'nowhere'"):
        load_reward("nowhere.reward")
    with pytest.raises(ValueError, match=r"where nowhere\.py lies"):
        load_reward("nowhere.reward")
    with pytest.raises(ValueError, match=r"nope\.my_reward, where the file lies"):
        load_reward("nope.py")
    with pytest.raises(ValueError, match="did you mean 'paper-code'"):
        load_reward("papercode")
