"""The judge in a reward: asked as seldom as can be, and never beyond its budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from research_rl.envs.protocols import Segment
from research_rl.envs.rewards import RewardTerms
from research_rl.envs.rewards.lint import lint_reward
from research_rl.envs.types import UNANSWERABLE, Question
from research_rl.trainers.evaluate.judges import JudgeTerm

QUESTION = Question("1", "Who is the boss of Bakset ?", ("Domlor",))


class Server:
    """Calls right what says Domlor, and counts how often it is asked."""

    def __init__(self, reply: str | None = None) -> None:
        self.reply, self.asked = reply, 0

    def __call__(self, messages: Any) -> str:
        self.asked += 1
        said = messages[0]["content"].split("pred_answer: ")[1].split("\n")[0]
        right = "correct" if said in ("old Domlor", "Domlor of Bakset") else "incorrect"
        return self.reply or json.dumps({"rationale": "r", "judgement": right})


def paid(term: JudgeTerm, said: str, question: Question = QUESTION) -> float:
    text = f"<think> t </think> <answer> \\boxed{{{said}}} </answer>"
    return term([Segment("policy", text)], question, ())


def test_what_is_plain_is_not_asked() -> None:
    server = Server()
    term = JudgeTerm("j", chat=server)
    assert [paid(term, said) for said in ("Domlor", "domlor.", "", "Domlor " * 99)] == [1, 1, 0, 0]
    unknown = Question("2", "Who?", UNANSWERABLE, {"unanswerable": True})
    assert paid(term, "no answer", unknown) == 1.0
    worded = Question("3", "Who?", ("insufficient information",), {"unanswerable": True})
    assert [paid(term, said, worded) for said in ("Insufficient information.", "Veros")] == [1, 0]
    assert server.asked == 0


def test_a_verdict_is_paid_for_once_also_by_the_next_run(tmp_path: Path) -> None:
    server = Server()
    file = str(tmp_path / "verdicts.jsonl")
    term = JudgeTerm("j", cache=file, chat=server)
    assert [paid(term, said) for said in ("old Domlor", "Veros", "old Domlor")] == [1, 0, 1]
    assert (server.asked, term.calls) == (2, 2)
    assert paid(JudgeTerm("j", cache=file, chat=server), "old Domlor") == 1.0
    assert server.asked == 2


def test_the_cost_is_bounded_and_told(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    term = JudgeTerm("j", max_calls=1, chat=server)
    assert paid(term, "old Domlor") == 1.0
    assert [paid(term, "Domlor of Bakset") for _ in range(3)] == [0.0] * 3
    assert (server.asked, term.unjudged) == (1, 3)
    assert "2 answers without a verdict so far, which earn 0: max_calls of 1" in caplog.text


def test_a_judge_that_babbles_pays_nothing_and_is_asked_again() -> None:
    server = Server("well, it depends")
    term = JudgeTerm("j", chat=server)
    assert paid(term, "old Domlor") == 0.0
    server.reply = None
    assert paid(term, "old Domlor") == 1.0


def test_it_has_no_hole() -> None:
    assert lint_reward(RewardTerms({"judge": JudgeTerm("j", chat=Server())})) == []


@pytest.mark.parametrize("wrong", [{}, {"url": "http://x", "max_calls": 0}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        JudgeTerm("j", **wrong)
