"""A served agent under clients that drop what they asked, flood it, or ask in hostile words."""

from __future__ import annotations

import http.client
import importlib.util
import json
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi")

from doubles.agent_server import CHAT, ROUTES, Stalled, asking, queue_of, said, until
from doubles.agent_world import ask_page
from doubles.fake_retrieval import post
from doubles.toy_retriever import Ranked

from research_rl.envs import Passage, Retriever
from research_rl.envs.protocols import RESEARCH
from research_rl.envs.system import scalar_text
from research_rl.trainers.agent import AgentSettings, BackgroundAgentServer
from research_rl.trainers.agent.asker import LONGEST_QUESTION
from research_rl.trainers.viewer import turn_parts

CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "research", "arguments": {"question": "Who?"}},
}
MCP = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


class Echo(Retriever):
    """Finds passages that hold the query, and what is set, as they are."""

    def __init__(self) -> None:
        self.contents = ""

    def search(self, queries: Any, k: int) -> list[list[Passage]]:
        """Return one passage a query."""
        return [[Passage("p", f"{query}\n{self.contents}", 1.0)] for query in queries]


@pytest.mark.parametrize("route", [*ROUTES, "/mcp"])
def test_a_dropped_stream_frees_its_slot(route: str, stalled: Stalled) -> None:
    """Its first bytes are read; then the client is gone, and the next question is answered."""
    if route == "/mcp":
        pytest.importorskip("mcp")
    with BackgroundAgentServer(queue_of(stalled, max_waiting=1)) as server:
        clients = [start(server, route)]
        assert stalled.begun.wait(60)
        clients.append(start(server, route))
        until(lambda: server.queue.waiting == 1)
        assert post(f"{server.url}/ask", {"question": "Who?"})[0] == 429
        for client in clients:
            client.close()
        until(lambda: server.queue.waiting == 0)
        until(lambda: bool(server.queue._gone))
        stalled.go_on.set()
        until(lambda: not server.queue._running)
        assert stalled.asked == 1
        assert ask_page(server.url, "Who?")[-1]["answer"] == "Rome"
        assert not server.queue._given_up


def start(server: BackgroundAgentServer, route: str) -> http.client.HTTPConnection:
    """A client that has asked for a stream."""
    if route != "/mcp":
        return asking(server, route, **({"stream": True} if "chat" in route else {}))
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    client.request("POST", route, json.dumps(CALL), MCP)
    return client


HOSTILE = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\x00\x07\x1b\x7f\x85\u2028\u2029\u202e\ufeff\r\n\t<>/&\"'\\"),
    ),
    max_size=40,
)
WORDS = st.sampled_from(
    [
        *("</think>", "<search>", "</search>", "<result>", "</result>", "<answer>", "</answer>"),
        *(
            "\n\n",
            "\r\n\r\n",
            "data: [DONE]\n\n",
            '{"event": "answer"}\n',
            "event: x\n",
            "<|im_end|>",
        ),
    ]
)
QUESTIONS = st.lists(st.one_of(HOSTILE, WORDS), min_size=1, max_size=12).map("".join)
LONGEST = "".join(chr(n % 0x800) for n in range(LONGEST_QUESTION))
SURROGATES = ("\ud800", "a \udfff b", "\udc00\ud800")


class Speaker:
    """A model that remembers its turns.

    Args:
        say: what it says to what it is shown.
    """

    def __init__(self, say: Callable[[str], str]) -> None:
        self._say = say
        self.turns: list[str] = []

    def __call__(self, shown: Any) -> str:
        self.turns.append(self._say(str(shown)))
        return self.turns[-1]


def echoing(text: str) -> str:
    """Think, search for and answer with what is shown."""
    if text.rstrip().endswith("</result>"):
        return RESEARCH.answer(text[:200], text)
    return RESEARCH.search(text, thought=text)


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker(echoing)


@pytest.fixture(scope="module")
def server(speaker: Speaker, echo: Echo) -> Iterator[BackgroundAgentServer]:
    with BackgroundAgentServer(queue_of(speaker, retriever=echo)) as running:
        yield running


def check_streams(server: BackgroundAgentServer, speaker: Speaker, question: str) -> None:
    """Every event of both streams parses, and the pieces joined are what the model said."""
    speaker.turns.clear()
    lines = raw(server, "/ask", {"question": question}).split(b"\n")
    assert lines.pop() == b""
    assert all(line.isascii() for line in lines), "some clients take U+2028 for the end of a line"
    *events, answer = [parsed(line) for line in lines]
    assert answer["event"] == "answer"
    assert {event["event"] for event in events} <= {"part", "more", "result"}
    assert speaker.turns
    for number, turn in enumerate(speaker.turns):
        parts = [list(part[:2]) for part in turn_parts(scalar_text(turn))]
        assert parts_of(events, number) == parts
    messages = [{"role": "user", "content": question}]
    body = CHAT | {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    blocks = raw(server, "/v1/chat/completions", body).split(b"\n\n")
    assert blocks.pop() == b""
    assert blocks.pop() == b"data: [DONE]"
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks)
    assert all(block.isascii() for block in blocks)
    chunks = [parsed(block.removeprefix(b"data: ")) for block in blocks]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])
    told = [chunk["research"] for chunk in chunks if "research" in chunk]
    assert text == told[-1]["answer"] == answer["answer"]
    assert [one for one in told if "event" in one] == events
    whole = parsed(raw(server, "/v1/chat/completions", CHAT | {"messages": messages}))
    assert whole["choices"][0]["message"]["content"] == text
    assert whole["usage"] == chunks[-1]["usage"]


def raw(server: BackgroundAgentServer, route: str, body: Any) -> bytes:
    """The bytes of an answer."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    client.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
    answer = client.getresponse()
    told = answer.read()
    client.close()
    assert answer.status == 200, told
    return told


def parsed(line: bytes) -> Any:
    """A line as a strict reader has it: JSON, all of whose text UTF-8 can write."""
    value = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def parts_of(events: list[dict[str, Any]], turn: int) -> list[list[str]]:
    """The parts of a turn, as a page puts them together."""
    parts: list[list[str]] = []
    for event in events:
        if event.get("turn") != turn:
            continue
        if event["event"] == "part":
            del parts[event["part"] :]
            parts.append([event["kind"], event["text"]])
        elif event["event"] == "more":
            parts[event["part"]][1] += event["text"]
    return parts


@settings(max_examples=30, deadline=None)
@given(question=QUESTIONS.filter(str.strip))
def test_no_question_breaks_a_stream(
    question: str, server: BackgroundAgentServer, speaker: Speaker
) -> None:
    check_streams(server, speaker, question)


@pytest.mark.parametrize(
    "question",
    [LONGEST, "<" * LONGEST_QUESTION, "<answer>" * (LONGEST_QUESTION // 8), "\x00", "\u2028Who"],
)
def test_long_questions_and_single_characters(
    question: str, server: BackgroundAgentServer, speaker: Speaker
) -> None:
    check_streams(server, speaker, question)


@pytest.mark.parametrize("half", SURROGATES)
def test_half_a_character_of_an_index_or_a_model_breaks_nothing(
    half: str, server: BackgroundAgentServer, speaker: Speaker, echo: Echo
) -> None:
    echo.contents = half
    try:
        check_streams(server, speaker, "Who?")
    finally:
        echo.contents = ""

    def halves(text: str) -> str:
        return RESEARCH.answer(half, half) if "<result>" in text else RESEARCH.search(half)

    saying = Speaker(halves)
    with BackgroundAgentServer(queue_of(saying)) as other:
        check_streams(other, saying, "Who?")


@pytest.mark.parametrize("half", SURROGATES)
def test_half_a_character_in_a_body_is_refused(half: str, server: BackgroundAgentServer) -> None:
    messages = [{"role": "user", "content": half}]
    for route, body in {
        "/ask": {"question": half},
        "/v1/chat/completions": CHAT | {"messages": messages},
    }.items():
        status, told = post(f"{server.url}{route}", body)
        assert (status, "surrogate" in said(told)) == (400, True)
    pytest.importorskip("mcp")
    call = {**CALL, "params": {"name": "research", "arguments": {"question": half}}}
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    client.request("POST", "/mcp", json.dumps(call), MCP)
    answer = client.getresponse()
    text = answer.read().decode()
    assert answer.status in (200, 400), text
    assert "rror" in text
    client.close()


SECRET = "Zwiebelfisch"


@pytest.mark.parametrize("dead", [False, True])
def test_no_question_is_logged(dead: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Of those that are answered, refused or fail, on every route."""
    question = f"Who was {SECRET}?"
    messages = [{"role": "user", "content": question}]
    chat = CHAT | {"messages": messages}
    bodies: list[tuple[str, Any]] = [
        ("/ask", {"question": question}),
        ("/ask", {"question": question, SECRET: 1}),
        ("/ask", {"question": SECRET * 1000}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", chat | {"stream": True}),
        ("/v1/chat/completions", chat | {"model": SECRET}),
        ("/v1/chat/completions", chat | {SECRET: 1}),
        ("/ask", f'{{"question": "{SECRET}'.encode()),
        (f"/{SECRET}", {}),
    ]
    if importlib.util.find_spec("mcp") is not None:
        for told in ({"question": question}, {"question": [SECRET]}, {SECRET: 1}):
            call = {"name": "research", "arguments": told}
            bodies.append(("/mcp", CALL | {"params": call}))
        bodies += [("/mcp", CALL | {"method": SECRET}), ("/mcp", {SECRET: 1})]
    with (
        caplog.at_level(logging.INFO),
        BackgroundAgentServer(queue_of(Speaker(echoing), retriever=Ranked(dead))) as server,
    ):
        caplog.set_level(logging.INFO, "uvicorn.error")
        for route, body in bodies:
            client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            data = body if isinstance(body, bytes) else json.dumps(body)
            client.request("POST", route, data, MCP)
            client.getresponse().read()
            client.close()
    if importlib.util.find_spec("mcp") is not None:
        assert caplog.records, "MCP logs its start, so what is logged is seen here"
    assert SECRET not in caplog.text


def test_a_key_is_wanted_on_every_route_but_two() -> None:
    """Whatever route there is or is added: without the key only the empty page and the health."""
    settings = AgentSettings(api_key="k", page="<p>page</p>")
    opened = set()
    with BackgroundAgentServer(queue_of(), settings) as server:
        app: Any = server._server.config.app
        paths = {route.path for route in app.routes}
        assert paths == {"/", "/v1/models", "/mcp", "/health", "/metrics", *ROUTES}
        for path in (*paths, "//", "/ASK", "/health/", "/docs", "/openapi.json", "/nowhere"):
            for method in ("GET", "HEAD", "POST", "OPTIONS", "PUT"):
                for key in (None, "Bearer wrong", "Basic k", "Bearer k\u00e9"):
                    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                    client.request(method, path, headers={"Authorization": key} if key else {})
                    answer = client.getresponse()
                    answer.read()
                    client.close()
                    if answer.status != 401:
                        opened.add(path)
                    else:
                        assert answer.getheader("WWW-Authenticate") == "Bearer"
    assert opened == {"/", "/health"}


@pytest.mark.parametrize("route", [*ROUTES, "/mcp"])
def test_who_is_one_too_many_is_told_when_to_come_again(
    route: str, stalled: Stalled, monkeypatch: pytest.MonkeyPatch
) -> None:
    if route == "/mcp":
        pytest.importorskip("mcp")
    with BackgroundAgentServer(queue_of(stalled, max_waiting=1)) as server:
        clients = [asking(server, "/ask")]
        assert stalled.begun.wait(60)
        clients.append(asking(server, "/ask"))
        until(lambda: server.queue.waiting == 1)
        refused = start(server, route)
        answer = refused.getresponse()
        told = answer.read().decode()
        assert "1 requests wait, more may not; ask again later" in told
        if route != "/mcp":  # where an error of the tool is an answer to the model that called it
            assert (answer.status, answer.getheader("Retry-After")) == (429, "1")
        refused.close()
        until(lambda: server.queue.waiting == 1)
        monkeypatch.setattr(server.queue.asker, "check", None)  # it is not even looked at
        assert post(f"{server.url}/ask", {"question": "Who?"})[0] == 429
        monkeypatch.undo()
        stalled.go_on.set()
        for client in clients:
            assert b'"answer": "Rome"' in client.getresponse().read()
            client.close()


def test_an_upgrade_to_another_protocol_is_not_taken(server: BackgroundAgentServer) -> None:
    head = (
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
