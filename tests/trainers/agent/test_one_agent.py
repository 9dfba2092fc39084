"""One question in four ways, in the terminal, on the page, as a chat and as a tool: one answer."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import taught

pytest.importorskip("fastapi")

import openai
from doubles.agent_world import ask_page, asker_of, chat, make_world

from research_rl.agents import LMPolicy, Rollout, SamplingParams, collect_rollouts
from research_rl.agents.engines import engine_for
from research_rl.trainers.agent import BackgroundAgentServer, QuestionQueue
from research_rl.trainers.cli import ask

QUESTIONS = list(taught.SCRIPTS)
ANSWERS = ["Domlor", "Rome", "yes"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rollouts(world: Path) -> list[Rollout]:
    """What training would play, greedily."""
    policy = LMPolicy.from_config(taught.config(world))
    env = taught.environment(world / "index")
    params = SamplingParams(taught.BUDGET, temperature=0.0)
    engine = engine_for(policy)
    return collect_rollouts(taught.questions(QUESTIONS), env, policy, engine, params)


@pytest.fixture(scope="module")
def server(world: Path) -> Iterator[BackgroundAgentServer]:
    with BackgroundAgentServer(QuestionQueue(asker_of(world))) as running:
        yield running


def same(told: dict[str, Any], rollout: Rollout) -> None:
    """The answer that was told is the rollout's."""
    assert told["answer"] == rollout.reward.prediction
    assert [one["query"] for one in told["searches"]] == rollout.queries
    assert [one["passages"] for one in told["searches"]] == rollout.passage_ids


def test_training_plays_what_was_taught(rollouts: list[Rollout]) -> None:
    assert [rollout.reward.prediction for rollout in rollouts] == ANSWERS
    assert [len(rollout.queries) for rollout in rollouts] == [1, 2, 0]


def test_the_terminal(
    world: Path, rollouts: list[Rollout], capsys: pytest.CaptureFixture[str]
) -> None:
    for rollout in rollouts:
        ask.main([*taught.options(world), rollout.question.text])
        out = capsys.readouterr().out
        assert f"\nAnswer: {rollout.reward.prediction}\n" in out
        assert f"{len(rollout.queries)} search" in out
        assert f"{sum(rollout.sequence.loss_mask)} tokens written" in out
        assert all(turn in out for turn in rollout.turns)


def test_the_page(server: BackgroundAgentServer, rollouts: list[Rollout]) -> None:
    for rollout in rollouts:
        *events, answer = ask_page(server.url, rollout.question.text)
        same(answer, rollout)
        assert answer["usage"]["completion_tokens"] == sum(rollout.sequence.loss_mask)
        results = [e for e in events if e["event"] == "result"]
        shown = [[p["id"] for p in s["passages"]] for e in results for s in e["searches"]]
        assert shown == rollout.passage_ids


def test_a_chat_with_the_openai_package(
    server: BackgroundAgentServer, rollouts: list[Rollout]
) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    (model,) = client.models.list().data
    for rollout in rollouts:
        asked: Any = [{"role": "user", "content": rollout.question.text}]
        whole = client.chat.completions.create(model=model.id, messages=asked)
        extra: Any = whole.model_extra
        same({**extra["research"], "answer": whole.choices[0].message.content}, rollout)
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        prompt = len(rollout.sequence.prompt_ids) + rollout.sequence.loss_mask.count(False)
        assert whole.usage.prompt_tokens == prompt
        assert whole.usage.completion_tokens == sum(rollout.sequence.loss_mask)

        stream = client.chat.completions.create(
            model=model.id, messages=asked, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        told: Any = [c.model_extra["research"] for c in chunks if "research" in c.model_extra]
        same({**told[-1], "answer": text}, rollout)
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].usage == whole.usage


def test_questions_that_are_answered_together(world: Path, rollouts: list[Rollout]) -> None:
    queue = QuestionQueue(asker_of(world), max_wait=0.3)
    with BackgroundAgentServer(queue) as server:

        async def all_at_once() -> list[Any]:
            client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60)
            return await asyncio.gather(
                *(chat(client, rollout.question.text) for rollout in rollouts * 4)
            )

        for reply, rollout in zip(asyncio.run(all_at_once()), rollouts * 4, strict=True):
            told = {**reply.model_extra["research"], "answer": reply.choices[0].message.content}
            same(told, rollout)
    assert queue.runs < 6, "they are not answered one by one"


def test_a_seed_and_a_temperature_are_the_requests(server: BackgroundAgentServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

    def words(**params: Any) -> list[Any]:
        asked: Any = [{"role": "user", "content": QUESTIONS[0]}]
        stream = client.chat.completions.create(
            model="research", messages=asked, stream=True, **params
        )
        return [c.model_extra["research"] for c in stream if "research" in c.model_extra][:-1]

    hot = words(temperature=2.0, seed=3, max_tokens=60)
    assert hot == words(temperature=2.0, seed=3, max_completion_tokens=60)
    assert hot != words(temperature=2.0, seed=4, max_tokens=60)


def test_mcp_over_http(server: BackgroundAgentServer, rollouts: list[Rollout]) -> None:
    pytest.importorskip("mcp")
    from mcp import Client

    async def all_tools() -> None:
        async with Client(f"{server.url}/mcp") as client:
            (tool,) = (await client.list_tools()).tools
            assert tool.name == "research"
            for rollout in rollouts:
                heard: list[Any] = []

                async def hear(*told: Any, heard: list[Any] = heard) -> None:
                    heard.append(told)

                asked = {"question": rollout.question.text}
                reply = await client.call_tool("research", asked, progress_callback=hear)
                assert not reply.is_error
                same(reply.structured_content, rollout)
                assert json.loads(reply.content[0].text) == reply.structured_content
                assert len(heard) == len(rollout.queries)
            for wrong, said in (({"question": " "}, "question must"), ({}, "question")):
                reply = await client.call_tool("research", wrong)
                assert reply.is_error
                assert said in reply.content[0].text

    asyncio.run(all_tools())


def test_mcp_on_standard_streams(world: Path, rollouts: list[Rollout]) -> None:
    pytest.importorskip("mcp")
    from mcp import Client, StdioServerParameters, stdio_client

    words = ["-m", "research_rl.trainers.cli", "serve-agent", "--mcp", *taught.options(world)]

    async def one() -> None:
        params = StdioServerParameters(command=sys.executable, args=words, env=dict(os.environ))
        async with Client(stdio_client(params)) as client:
            for rollout in rollouts[:2]:
                reply = await client.call_tool("research", {"question": rollout.question.text})
                same(reply.structured_content, rollout)

    asyncio.run(one())
