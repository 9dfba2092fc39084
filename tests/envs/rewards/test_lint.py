"""The linter of rewards: the default is clean, the paper's are not, each kind of hole is seen."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from research_rl.envs.protocols import (
    PROTOCOLS,
    RESEARCH,
    Action,
    Answer,
    Found,
    Malformed,
    Part,
    Prompt,
    Protocol,
    Search,
    Segment,
    TagProtocol,
    format_error,
)
from research_rl.envs.rewards import lint
from research_rl.envs.rewards.answers import f1_score
from research_rl.envs.rewards.choose import get_reward
from research_rl.envs.rewards.lint import (
    FINDING_KINDS,
    Finding,
    cases_of,
    lint_reward,
    load_protocol,
    load_reward,
)
from research_rl.envs.rewards.lint_cases import Cases
from research_rl.envs.rewards.presets import DefaultReward, RewardFunction
from research_rl.envs.types import Question, Reward


def cases(findings: Sequence[Finding], kind: str) -> set[str]:
    return {f.case for f in findings if f.kind == kind}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches little: what a test of another kind of hole needs."""
    monkeypatch.setattr(Cases, "strings", lambda self: iter(()))
    monkeypatch.setattr(Cases, "mutations", lambda self: iter(()))


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


def test_the_cases_of_research_are_what_they_say() -> None:
    research = cases_of(RESEARCH)
    scores = [f1_score(c.turns[0].split("{")[1].split("}")[0], ["Paris"]) for c in research.ladder]
    assert scores == sorted(scores)
    assert [scores[0], scores[-1]] == [0.0, 1.0]
    assert scores[1] == pytest.approx(2 / 31), "below the 0.1 of a wrong answer"
    for cheat in research.cheats:
        stuffed = cheat.case.name == "every city in one box"  # well formed, paid by its own F1
        assert (format_error(cheat.case.segments()) is None) == stuffed, cheat.case.name


class Own(TagProtocol):
    """Tags in brackets, and no thought is needed."""

    tags = {**TagProtocol.tags, "search": ("[search]", "[/search]")}  # noqa: RUF012
    stops = ("[/search]",)
    needs_thought = False


class Strange(Protocol):
    """Of neither family: a line that begins with ? asks, another one answers."""

    def prompt(self, chat: bool = True, about: str | None = None) -> Prompt:
        """Return the prompt."""
        return Prompt(None, "{prompt}")

    def parse(self, turn: str) -> Action:
        """Return what a line asks for."""
        line = turn.rpartition("|")[2].strip()
        if line.startswith("?"):
            return Search((line[1:].strip(),))
        return Answer(line) if line else Malformed("nothing")

    def reply(self, found: Sequence[Found], note: str = "", escape: bool = True) -> str:
        """Return the passages."""
        return "\n".join(p.contents for one in found for p in one.passages) + note

    def content(self, reply: str) -> str:
        """Return the reply."""
        return reply

    def format_error(self, segments: Sequence[Segment]) -> str | None:
        """Say whether a turn before the last answers, or the last one asks."""
        actions = [self.parse(s.text) for s in segments if s.kind == "policy"]
        if not all(isinstance(action, Search) for action in actions[:-1]):
            return "an early answer"
        if any("?" in s.text.rpartition("|")[0] for s in segments if s.kind == "policy"):
            return "a search that is not run"
        return None if actions and isinstance(actions[-1], Answer) else "no answer"

    def parts(self, turn: str) -> list[Part]:
        """Return the turn as text."""
        return [Part("text", turn)] if turn else []

    def escape(self, text: str) -> str:
        """Return the text."""
        return text

    def search(self, *queries: str, thought: str = "", opened: str = "") -> str:
        """Write a line that asks."""
        return f"{thought}|? {queries[0]}"

    def answer(self, text: str, thought: str = "", opened: str = "") -> str:
        """Write a line that answers."""
        return f"{thought}|{text}"


EVERY = [*PROTOCOLS.values(), Own(), Strange()]


@pytest.mark.parametrize("protocol", EVERY, ids=lambda p: p.name.rpartition(".")[2])
def test_the_cases_of_each_dialect_are_what_they_say(protocol: Protocol) -> None:
    cases = cases_of(protocol)
    for case in (*cases.ladder, *cases.same_answer):
        assert protocol.format_error(case.segments()) is None, case
    names = [c.name for c in (*cases.ladder, *cases.same_answer)]
    assert len(set(names)) == len(names)
    sound = {c.case.name for c in cases.cheats if protocol.format_error(c.case.segments()) is None}
    assert len({c.case.name for c in cases.cheats}) == len(cases.cheats)
    assert sound - {"a second answer", "a search that is never run"} == {
        next(name for name in sound if name.startswith("every city in one "))
    }
    if not isinstance(protocol, Strange):
        assert len(cases.cheats) >= 20
        assert {c.name for c in cases.hard} >= {"lone surrogates", "no segment but an empty one"}


@pytest.mark.parametrize("protocol", EVERY, ids=lambda p: p.name.rpartition(".")[2])
@pytest.mark.parametrize("reward", ["default", "em", "cover"])
@pytest.mark.usefixtures("few")
def test_the_default_passes_in_each_dialect(protocol: Protocol, reward: str) -> None:
    found = lint_reward(get_reward(reward), protocol=protocol)
    assert {f.kind for f in found} == ({"hackable"} if reward == "cover" else set()), found
    assert all(f.case.startswith("every city in one ") for f in found)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", EVERY, ids=lambda p: p.name.rpartition(".")[2])
def test_the_default_passes_the_search_in_each_dialect(protocol: Protocol) -> None:
    assert lint_reward(get_reward("default"), protocol=protocol) == []
    assert lint_reward(get_reward("em"), protocol=protocol) == []


@pytest.mark.parametrize("name", ["hermes", "recall", "qwen3_coder", "llama3"])
@pytest.mark.usefixtures("few")
def test_a_reward_that_overlooks_the_form_of_calls_is_found_out(name: str) -> None:
    found = lint_reward(get_reward("paper"), protocol=name)
    assert cases(found, "hackable") >= {
        "a call of a tool that is not there",
        "a call without a query",
        "a turn that does not call",
        "a result in front of the answer",
    }


def test_a_reward_made_for_one_protocol_is_refused_for_others() -> None:
    with pytest.raises(ValueError, match="paper-code must meet the protocol research"):
        lint_reward(get_reward("paper-code"), protocol="hermes")


def test_the_search_is_small_and_repeatable() -> None:
    research = cases_of(RESEARCH)
    strings = [case.turns for case in research.strings(3)]
    assert len(strings) == len(set(strings)) == 8 * 2 + 8**2 * 3 + 8**3 * 4
    assert [m.turns for m in research.mutations(50)] == [m.turns for m in research.mutations(50)]
    assert len({m.turns for m in research.mutations(200)}) > 100
    refined = sum(1 for _ in cases_of(PROTOCOLS["autorefine"]).strings(3))
    assert refined == 10 * 2 + 10**2 * 3, "with more tags, of one less"


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


@pytest.mark.usefixtures("few")
def test_the_command_in_another_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "em", "--protocol", "o2") == (0, "em in o2: no hole found\n")
    status, text = run(capsys, "cover", "--protocol", "llama3", "--json")
    assert status == 1
    assert json.loads(text)["protocol"] == "llama3"
    with pytest.raises(ValueError, match="did you mean 'hermes'"):
        run(capsys, "default", "--protocol", "hermess")


@pytest.mark.usefixtures("few")
def test_a_protocol_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_protocol_file.py").write_text(
        "from research_rl.envs.protocols import TagProtocol\n"
        "class Mine(TagProtocol):\n    stops = ('</search>', '</answer>')\n"
        "my_protocol = Mine()\n"
        "class Needs(Mine):\n    def __init__(self, weight): pass\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("Mine", "my_protocol"):
        status, text = run(capsys, "default", "--protocol", f"my_protocol_file.{name}")
        assert (status, text) == (0, "default in my_protocol_file.Mine: no hole found\n")
    with pytest.raises(ValueError, match="cannot be made without arguments"):
        load_protocol("my_protocol_file.Needs")
    with pytest.raises(ValueError, match="a protocol must be a Protocol or its class, got my_prot"):
        load_protocol("my_protocol_file.number")
    with pytest.raises(ValueError, match="No module named 'nowhere'"):
        load_protocol("nowhere.Mine")


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
