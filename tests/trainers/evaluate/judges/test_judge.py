"""The judge: its prompt, what is read from replies, what is kept, and what its failures count."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from doubles.payloads import MODULE, Payload, write_module
from doubles.served_model import model_server
from hypothesis import given
from hypothesis import strategies as st

from research_rl.agents.methods.openai_generator import OpenAIGenerator
from research_rl.agents.methods.research import Prediction
from research_rl.envs.types import Question
from research_rl.trainers.evaluate.judges.cache import JudgeCache
from research_rl.trainers.evaluate.judges.judge import (
    PROMPT,
    Judge,
    JudgeCase,
    JudgeMessage,
    judge_score,
    parse_verdict,
)
from research_rl.trainers.evaluate.judges.rows import asked_how, chat_of
from research_rl.trainers.evaluate.measures.agreement import agreement_of

CASES = [JudgeCase(f"Question {number}?", ("Oslo", "Christiania"), "Oslo") for number in range(6)]


def reply(correct: bool, rationale: str = "because") -> str:
    return json.dumps({"rationale": rationale, "judgement": "correct" if correct else "incorrect"})


class FakeChat:
    """Says the next of its replies, the last one for ever; an exception is raised."""

    def __init__(self, *replies: str | Exception) -> None:
        self.replies, self.seen = list(replies), list[list[JudgeMessage]]()
        self._lock = threading.Lock()

    def __call__(self, messages: Sequence[JudgeMessage]) -> str:
        with self._lock:
            self.seen.append(list(messages))
            said = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(said, Exception):
            raise said
        return said


def test_the_prompt_is_the_papers() -> None:
    # SHA-256 of llm_judge_prompt, Agent-RL/ReCall, branch re-search
    digest = hashlib.sha256(PROMPT.encode()).hexdigest()
    assert digest == "da6922957e99f666ed2e2e0f2ab67c4745537015209f92f7170320aeaf4f8524"
    question = Question("1", "A {curly} question?", ("It's", "b"))
    [message] = JudgeCase.of(Prediction(question, "an {answer}")).messages()
    assert message["role"] == "user"
    assert "question: A {curly} question?\n" in message["content"]
    assert "ground truth answers: [\"It's\", 'b']\n" in message["content"]
    assert "pred_answer: an {answer}\n" in message["content"]


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        (reply(True), True),
        (reply(False), False),
        (f"```json\n{reply(True)}\n```", True),
        (f"<think>maybe {reply(False)}</think>\nSure: {reply(True)} Done.", True),
        ('{"rationale": "a", "judgment": " Incorrect. "}', False),
        ('{"rationale": "he said "Oslo", so", "judgement": "correct"}', True),
        ('{"rationale": "two\nlines", "judgement": "incorrect"}', False),
        ('{"rationale": "cut off in the fence", "judgement": "correct"', True),
    ],
)
def test_verdicts_are_read_as_judges_write_them(text: str, correct: bool) -> None:
    assert parse_verdict(text).correct is correct


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is correct.",
        "correct or incorrect",
        "[]",
        "{",
        '{"judgement": true}',
        '{"judgement": "partially correct"}',
        PROMPT,
        f"<think> perhaps {reply(True)}, but then",
        f"<think> a </think> {reply(False)[:9]} <think> no: {reply(True)}",
        '"judgement": "correct" and "judgement": "incorrect"',
    ],
)
def test_nonsense_is_refused_and_shown(text: str) -> None:
    with pytest.raises(ValueError, match="must be 'correct' or 'incorrect', got"):
        parse_verdict(text)


@given(st.text(), st.booleans(), st.text())
def test_any_rationale_is_read_back(rationale: str, correct: bool, before: str) -> None:
    verdict = parse_verdict(before.replace("{", "(") + reply(correct, rationale))
    assert (verdict.correct, verdict.rationale) == (correct, rationale)


@given(st.text(alphabet='{}[]":, correctinjudgm\\'))
def test_reading_a_reply_gives_a_verdict_or_says_why_not(text: str) -> None:
    try:
        assert parse_verdict(text).correct in (True, False)
    except ValueError as error:
        assert "must be 'correct' or 'incorrect'" in str(error)  # noqa: PT017


def test_real_verdicts_come_back_through_the_whole_judge(real_data: Path, tmp_path: Path) -> None:
    lines = (real_data / "judge_cases.jsonl").open(encoding="utf-8")
    rows = [json.loads(line) for line in lines]
    cases = [JudgeCase(r["question"], tuple(r["golds"]), r["prediction"]) for r in rows]
    said = {case.messages()[0]["content"]: r for case, r in zip(cases, rows, strict=True)}
    styles = ("{}", "```json\n{}\n```", "<think>{{hm}}</think> Here: {} That is all.")

    def chat(messages: Sequence[JudgeMessage]) -> str:
        row = said[messages[0]["content"]]
        style = styles[int(row["id"][1:]) % len(styles)]
        return style.format(reply(row["gpt4o_verdict"], f'"{row["prediction"]}"'))

    verdicts = Judge("recorded", chat, JudgeCache(tmp_path / "cache.jsonl")).judge(cases)
    truth = [said[case.messages()[0]["content"]]["gpt4o_verdict"] for case in cases]
    assert [verdict.correct for verdict in verdicts] == truth
    score = judge_score(verdicts)
    assert (score.n, score.failures) == (len(rows), 0)
    assert score.accuracy == pytest.approx(sum(truth) / len(truth))
    assert len((tmp_path / "cache.jsonl").read_text().splitlines()) == len(set(said))


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    chat, path = FakeChat(reply(True)), tmp_path / "deep" / "verdicts.jsonl"
    first = Judge("m", chat, JudgeCache(path)).judge([*CASES, CASES[0]])
    assert len(chat.seen) == len(CASES)
    silent = FakeChat(OSError("must not be asked"))
    again = Judge("m", silent, JudgeCache(path)).judge(CASES)
    assert not silent.seen
    assert [v.correct for v in again] == [v.correct for v in first[:-1]]
    assert all(v.cached and v.rationale == "because" for v in again)


def test_a_judge_is_known_by_where_and_how_it_is_asked(tmp_path: Path) -> None:
    def judged(url: str, **options: Any) -> int:
        chat = FakeChat(reply(True))
        settings = asked_how(OpenAIGenerator(url, "m", **options))
        Judge("m", chat, JudgeCache(tmp_path / "v.jsonl"), settings=settings).judge(CASES[:1])
        return len(chat.seen)

    assert judged("http://one:8000") == 1
    assert judged("http://one:8001/v1") == 0  # the same server on another port
    assert judged("http://two:8000") == 1
    assert judged("http://one:8000", extra={"top_k": 1}) == 1
    assert judged("http://one:8000", api="completions") == 1
    assert judged("http://one:8000", extra={"top_k": 1}) == 0


@pytest.mark.parametrize("changed", ["model", "golds", "prediction", "question"])
def test_other_content_is_another_case(changed: str) -> None:
    chat, cache, case = FakeChat(reply(True)), JudgeCache(None), CASES[0]
    Judge("m", chat, cache).judge([case])
    others = {
        "golds": JudgeCase(case.question, ("Oslo",), case.prediction),
        "prediction": JudgeCase(case.question, case.golds, "Rome"),
        "question": JudgeCase("Other?", case.golds, case.prediction),
    }
    Judge("n" if changed == "model" else "m", chat, cache).judge([others.get(changed, case)])
    assert len(chat.seen) == 2


def test_a_torn_line_costs_its_own_verdict_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "verdicts.jsonl"
    Judge("m", FakeChat(reply(True)), JudgeCache(path), concurrency=1).judge(CASES)
    path.write_bytes(path.read_bytes()[:-20])
    chat = FakeChat(reply(True))
    Judge("m", chat, JudgeCache(path)).judge(CASES)
    assert len(chat.seen) == 1
    assert f"verdicts.jsonl:{len(CASES)}: passed over a spoilt line" in caplog.text
    assert len(JudgeCache(path)) == len(CASES)


def test_a_cache_of_a_strangers_is_read_as_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran = tmp_path / "ran"
    write_module(tmp_path, ran)
    case = JudgeCase("Who?", ("I",), "me")
    judge = Judge("m", FakeChat(reply(True)))
    row = {"key": judge.key(case), "model": "m", "prompt": "p", "rationale": "r", "attempts": 1}
    code = {"class_path": f"{MODULE}.E"}
    lines = [
        pickle.dumps(Payload(ran)).replace(b"\n", b" "),
        base64.b64encode(pickle.dumps(Payload(ran))),
        f'key: !!python/object/apply:os.open ["{ran}", 65]'.encode(),
        b"${oc.env:HOME}",
        b"[" * 100_000,
        *(json.dumps({**row, "correct": said}).encode() for said in (code, "yes", 1, None)),
        *(json.dumps({**row, "correct": True, name: code}).encode() for name in row),
        json.dumps({**row, "correct": True, "class_path": f"{MODULE}.E"}).encode(),
        json.dumps({**row, "correct": True, "attempts": True}).encode(),
    ]
    (tmp_path / "verdicts.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    cache = JudgeCache(tmp_path / "verdicts.jsonl")
    assert len(cache) == 0
    assert caplog.text.count("passed over a spoilt line") == len(lines)
    assert Judge("m", judge.chat, cache).judge([case])[0].correct is True
    assert not ran.exists()
    assert len(JudgeCache(tmp_path / "verdicts.jsonl")) == 1, "what is good is kept beside it"


def test_a_judge_that_is_down_fails_every_case_and_is_soon_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, chat = tmp_path / "verdicts.jsonl", FakeChat(OSError("connection refused"))
    judge = Judge("m", chat, JudgeCache(path), concurrency=1, give_up_after=2)
    verdicts = judge.judge(CASES)
    assert [verdict.correct for verdict in verdicts] == [None] * len(CASES)
    assert len(chat.seen) == 2
    assert verdicts[0].error == "no reply: connection refused"
    assert verdicts[-1].error == "not asked: the judge does not answer"
    score = judge_score(verdicts)
    assert (score.accuracy, score.n, score.failures) == (None, 0, len(CASES))
    assert not path.exists()
    assert "no verdict on 6 cases" in caplog.text
    chat.replies = [reply(False)]  # the judge is back, and the same command goes on
    assert judge_score(judge.judge(CASES)).accuracy == 0.0


def test_some_failures_neither_count_as_right_nor_as_wrong() -> None:
    chat = FakeChat(reply(True), RuntimeError("timeout"), reply(False), reply(True))
    verdicts = Judge("m", chat, concurrency=1).judge(CASES[:4])
    score = judge_score(verdicts)
    assert (score.n, score.failures) == (3, 1)
    assert score.accuracy == pytest.approx(2 / 3)


def test_nonsense_is_asked_again_and_then_a_failure() -> None:
    mended = FakeChat("I like it!", reply(True))
    [verdict] = Judge("m", mended).judge(CASES[:1])
    assert (verdict.correct, verdict.attempts) == (True, 2)
    roles = [message["role"] for message in mended.seen[1]]
    assert roles == ["user", "assistant", "user"]
    stubborn = FakeChat("I like it!")
    [verdict] = Judge("m", stubborn, attempts=3).judge(CASES[:1])
    assert (verdict.correct, verdict.attempts, len(stubborn.seen)) == (None, 3, 3)
    assert "I like it!" in str(verdict.error)


def test_an_interrupted_run_keeps_what_was_judged(tmp_path: Path) -> None:
    path, count = tmp_path / "verdicts.jsonl", iter(range(100))

    def chat(messages: Sequence[JudgeMessage]) -> str:
        if next(count) == 3:
            raise KeyboardInterrupt
        return reply(True)

    with pytest.raises(KeyboardInterrupt):
        Judge("m", chat, JudgeCache(path), concurrency=1).judge(CASES)
    assert len(JudgeCache(path)) >= 1
    judged = Judge("m", FakeChat(reply(True)), JudgeCache(path)).judge(CASES)
    assert judge_score(judged).n == len(CASES)


def test_cases_are_asked_at_once() -> None:
    together = threading.Barrier(3, timeout=20)

    def chat(messages: Sequence[JudgeMessage]) -> str:
        together.wait()
        return reply(True)

    verdicts = Judge("m", chat, concurrency=3).judge(CASES)
    assert all(verdict.correct for verdict in verdicts)


def test_judges_agree_as_far_as_they_have_verdicts() -> None:
    cache, replies = JudgeCache(None), {"yes": reply(True), "no": reply(False), "down": OSError()}
    judges = [Judge(name, FakeChat(said), cache) for name, said in replies.items()]
    verdicts = {j.model: [v.correct for v in j.judge(CASES)] for j in judges}
    assert agreement_of({"yes": verdicts["yes"], "no": verdicts["no"]}).percent == 0.0
    assert agreement_of(verdicts).left_out == len(CASES)


def test_a_judge_behind_http_is_asked_greedily_and_its_failures_stay_apart(tmp_path: Path) -> None:
    bodies = []

    def say(body: dict[str, Any]) -> Any:
        bodies.append(body)
        question = body["messages"][0]["content"]
        if "Question 1?" in question:
            return 400, {"error": "too long"}
        return "What?" if "Question 2?" in question else reply("Question 3?" not in question)

    with model_server(say) as server:
        chat = chat_of(OpenAIGenerator(server.url, "tiny", retry_window=1.0, timeout=5.0))
        judge = Judge("tiny", chat, JudgeCache(tmp_path / "verdicts.jsonl"), attempts=2)
        verdicts = judge.judge(CASES[:4])
    assert [verdict.correct for verdict in verdicts] == [True, None, None, False]
    assert "too long" in str(verdicts[1].error)
    assert "What?" in str(verdicts[2].error)
    assert {(body["temperature"], body["max_tokens"]) for body in bodies} == {(0.0, 1024)}
    # The server is gone; what it said is not, and the rest is told to have failed.
    gone = chat_of(OpenAIGenerator(server.url, "tiny", retry_window=0.3, timeout=5.0))
    again = Judge("tiny", gone, JudgeCache(tmp_path / "verdicts.jsonl")).judge(CASES[:4])
    assert [verdict.correct for verdict in again] == [True, None, None, False]
    assert "none of the requests was served" in str(again[1].error)


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="concurrency must be at least 1, got 0"):
        Judge("m", FakeChat("x"), concurrency=0)
