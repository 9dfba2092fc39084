"""Words that the model cannot read are told before the answer, in the same text everywhere."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import taught, wordy

pytest.importorskip("fastapi")

import openai
from doubles.agent_world import ask_page, asker_of

import research_rl
from research_rl.envs.retrieval import build_index
from research_rl.trainers.agent import BackgroundAgentServer, QuestionQueue
from research_rl.trainers.cli import ask

FOREIGN = "Who directed the film Alien ?"
TOLD = (
    'The model reads <unk> in place of "directed", "film" and "Alien", which its tokenizer has no '
    "tokens for: it cannot search for these words, and the answer cannot be about them."
)
KNOWN = wordy.asked()[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's world and its model, with random weights."""
    folder = tmp_path_factory.mktemp("world")
    rows = [{"id": name, "contents": contents} for name, contents in taught.PASSAGES.items()]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index(folder / "corpus.jsonl", folder / "index", kind="bm25")
    wordy.policy(128).save_pretrained(folder / "policy")
    return folder


@pytest.fixture(scope="module")
def server(world: Path) -> Iterator[BackgroundAgentServer]:
    asker = asker_of(world, "--max-tokens", "9")
    with BackgroundAgentServer(QuestionQueue(asker)) as running:
        yield running


def test_every_word_of_the_quickstart_is_known(world: Path) -> None:
    asker = asker_of(world)
    assert [asker.notes(question) for question in wordy.asked()] == [[]] * len(wordy.asked())
    assert asker.notes(FOREIGN) == [TOLD]
    (one,) = asker.notes("Who is Alien ?")
    assert one.endswith(
        '"Alien", which its tokenizer has no token for: it cannot search for this word, and the '
        "answer cannot be about it."
    )


def test_the_terminal(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask.main([*taught.options(world), "--max-tokens", "9", FOREIGN])
    assert capsys.readouterr().out.startswith(f"Question: {FOREIGN}\n{TOLD}\n")
    ask.main([*taught.options(world), "--max-tokens", "9", KNOWN])
    assert "The model reads" not in capsys.readouterr().out


def test_the_page(server: BackgroundAgentServer) -> None:
    first, *_, answer = ask_page(server.url, FOREIGN)
    assert first == {"event": "note", "text": TOLD}
    assert answer["notes"] == [TOLD]
    *events, answer = ask_page(server.url, KNOWN)
    assert all(event["event"] != "note" for event in events)
    assert answer["notes"] == []


def test_a_chat(server: BackgroundAgentServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    for question, notes in ((FOREIGN, [TOLD]), (KNOWN, [])):
        asked: Any = [{"role": "user", "content": question}]
        reply: Any = client.chat.completions.create(model="research", messages=asked)
        assert reply.research["notes"] == notes
        chunks: Any = client.chat.completions.create(model="research", messages=asked, stream=True)
        told = [chunk.research for chunk in chunks if hasattr(chunk, "research")]
        assert told[-1]["notes"] == notes
        assert [one["text"] for one in told if one.get("event") == "note"] == notes
        assert told[0].get("event") == ("note" if notes else "part")


def test_a_tool(server: BackgroundAgentServer) -> None:
    pytest.importorskip("mcp")
    from mcp import Client

    async def notes() -> list[list[str]]:
        async with Client(f"{server.url}/mcp") as client:
            replies = [
                await client.call_tool("research", {"question": question})
                for question in (FOREIGN, KNOWN)
            ]
            return [reply.structured_content["notes"] for reply in replies]

    assert asyncio.run(notes()) == [[TOLD], []]


def test_python(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = {"model": str(world / "policy"), "index": str(world / "index"), "max_tokens": 9}
    with caplog.at_level(logging.WARNING):
        research_rl.ask(KNOWN, prompt="{prompt}", **given)
        assert "The model reads" not in caplog.text
        research_rl.ask(FOREIGN, prompt="{prompt}", **given)
    assert TOLD in caplog.messages
