"""What an asker tells of its questions, one or several, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from doubles import tiny
from doubles.taught import environment
from doubles.toy_retriever import Ranked
from hypothesis import given
from hypothesis import strategies as st

from research_rl.agents import (
    LMPolicy,
    Prediction,
    ReferenceEngine,
    ReSearchAgent,
    SamplingParams,
)
from research_rl.envs.web import Refused
from research_rl.trainers.agent.asker import Asker, NobodyWaitsError, Stretch
from research_rl.trainers.agent.chat import chat_request
from research_rl.trainers.agent.question_queue import Inquiry, QuestionQueue

PARAMS = SamplingParams(60, temperature=1.0)
BIAS = {"</search>": 9.0, "<search>": 8.0}


@pytest.fixture(scope="module")
def policy() -> LMPolicy:
    """One that searches now and then."""
    return tiny.policy(bias=BIAS).eval()


def asker_with(policy: LMPolicy, params: SamplingParams = PARAMS, **env: Any) -> Asker:
    env = environment(Ranked(), max_chars=200, **env)
    return Asker(ReSearchAgent(policy, ReferenceEngine(policy), env, params), max_slots=2)


def played(asker: Asker, *questions: str, **more: Any) -> list[tuple[Prediction, list[Stretch]]]:
    heard: list[list[Stretch]] = [[] for _ in questions]
    told = asker.answer(questions, [one.append for one in heard], **more)
    return list(zip(told, heard, strict=True))


def joined(stretches: list[Stretch]) -> list[tuple[str, int, str]]:
    """The stretches, those of a turn as one."""
    whole: list[tuple[str, int, str]] = []
    for stretch in stretches:
        key = (stretch.role, stretch.turn)
        if whole and whole[-1][:2] == key:
            whole[-1] = (*key, whole[-1][2] + stretch.text)
        else:
            whole.append((*key, stretch.text))
    return whole


@pytest.mark.parametrize("seed", range(6))
def test_what_is_told_is_the_episode(policy: LMPolicy, seed: int) -> None:
    asker = asker_with(policy)
    questions = ["Who?", "Where is it?", "When?"]
    together = played(asker, *questions, seed=seed)
    for question, (prediction, heard) in zip(questions, together, strict=True):
        ((alone, piecewise),) = played(asker, question, seed=seed)
        assert alone.steps == prediction.steps
        for stretches in (heard, piecewise):
            told = [text for _, _, text in joined(stretches)]
            assert told == [step.text for step in prediction.steps]
        found = [(f.query, f.passages) for s in heard for f in s.found]
        assert (
            found == list(zip(prediction.queries, prediction.passages, strict=True))[: len(found)]
        )


def test_who_is_gone_writes_no_more(policy: LMPolicy) -> None:
    asker = asker_with(policy, SamplingParams(3000, temperature=0.0))
    kept = tiny.policy(bias={"a": 30.0})
    long = asker_with(kept, SamplingParams(3000, temperature=0.0))
    with pytest.raises(NobodyWaitsError):
        played(long, "Who?", is_gone=lambda row: True)
    (gone, _), (stays, _) = played(
        asker_with(kept, SamplingParams(40, temperature=0.0)),
        "Who?",
        "Where?",
        is_gone=lambda row: row == 0,
    )
    assert gone.sampled_tokens == 1
    assert stays.sampled_tokens == 40
    asker.close()


def test_a_question_that_cannot_be_played_is_refused(policy: LMPolicy) -> None:
    asker = asker_with(policy, SamplingParams(4000, temperature=0.0))
    asker.check("Who?")
    for question, says in (
        ("", "must hold a question"),
        ("x" * 9000, "at most 8192 characters, got 9000"),
        ("x" * 200, "4000 tokens of its answer must fit in the model's 4096 positions"),
    ):
        with pytest.raises(ValueError, match=says):
            asker.check(question)
    asker.check("x" * 200, SamplingParams(1000))


def test_a_queue_answers_from_its_start_to_its_end(policy: LMPolicy) -> None:
    asker = asker_with(policy)
    queue = QuestionQueue(asker, max_waiting=5)
    with pytest.raises(RuntimeError, match="must have been started"):
        queue.submit(Inquiry("Who?"))
    with queue:
        hot = Inquiry("Who?", SamplingParams(9, temperature=1.0), 5)
        done = [queue.submit(one) for one in (Inquiry("Who?"), hot, Inquiry("Where?"), hot)]
        told = [one.result(60) for one in done]
        assert told[1].steps == told[3].steps
        assert told[1].sampled_tokens + told[1].result_tokens <= 9
        with pytest.raises(ValueError, match="must hold a question"):
            queue.submit(Inquiry(" "))
    with pytest.raises(ValueError, match="it is stopping"):
        queue.submit(Inquiry("Who?"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = ("model", "messages", "stream", "stream_options", "temperature", "seed", "max_tokens")


@given(st.dictionaries(st.sampled_from((*FIELDS, "n", "stop", "tools", "user")), VALUES) | VALUES)
def test_any_body_is_read_or_refused(change: Any) -> None:
    usual: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Who?"}]}
    body = usual | change if isinstance(change, dict) else change
    try:
        request = chat_request(body, "m", PARAMS)
    except Refused as refused:
        told = refused.status, len(str(refused))
        assert told[0] in (400, 404)
        assert told[1] < 500
        return
    assert request.inquiry.question
    assert 1 <= (request.inquiry.params or PARAMS).max_response_tokens <= 60
