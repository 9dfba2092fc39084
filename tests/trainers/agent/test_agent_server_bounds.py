"""What one client of a served agent cannot do to the others, and a web page cannot do at all."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("fastapi")

from doubles.agent_server import CHAT, ROUTES, Stalled, answers, asking, queue_of, said, until
from doubles.agent_world import ask_page
from doubles.fake_retrieval import post
from doubles.toy_retriever import Ranked

from research_rl.agents import Generation
from research_rl.envs.protocols import RESEARCH
from research_rl.trainers.agent import AgentSettings, BackgroundAgentServer
from research_rl.trainers.agent.app import MAX_CHAT_BYTES
from research_rl.trainers.agent.asker import LONGEST_QUESTION


@pytest.fixture
def server() -> Iterator[BackgroundAgentServer]:
    with BackgroundAgentServer(queue_of()) as running:
        yield running


@pytest.mark.parametrize("route", [*ROUTES, "/mcp"])
def test_a_large_body_is_not_read(route: str, server: BackgroundAgentServer) -> None:
    if route == "/mcp":
        pytest.importorskip("mcp")
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    client.putrequest("POST", route)
    client.putheader("Content-Type", "application/json")
    client.putheader("Content-Length", str(MAX_CHAT_BYTES + 1))
    client.endheaders()  # the answer comes before any of the body is sent
    answer = client.getresponse()
    assert answer.status == 413
    assert "at most" in str(json.loads(answer.read())["error"]["message"])
    client.close()


@pytest.mark.parametrize("route", ROUTES)
def test_bodies_that_are_no_questions(route: str, server: BackgroundAgentServer) -> None:
    for body, status in (
        *((b"{", 400), (b"[" * 10**5, 413), (b"\xff\xfe", 400), (b"[]", 400), (b"null", 400)),
        (b"[" * 5000, 400),
        (b"[" + b"1," * 70_000 + b"1]", 413),
    ):
        got, told = post(f"{server.url}{route}", body)
        assert got == status, body[:20]
        assert len(said(told)) < 500
    assert post(f"{server.url}/v1/chat/completions", CHAT)[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize("route", [*ROUTES, "/mcp"])
def test_a_page_cannot_post(kind: str, route: str, server: BackgroundAgentServer) -> None:
    if route == "/mcp":
        pytest.importorskip("mcp")
    body = json.dumps(ROUTES.get(route, {})).encode()
    status, told = post(f"{server.url}{route}", body, {"Content-Type": kind})
    assert status == 415
    assert "application/json" in said(told)


@pytest.mark.parametrize("route", [*ROUTES, "/mcp", "/v1/models", "/", "/metrics"])
def test_a_page_under_another_name_gets_nothing(route: str, server: BackgroundAgentServer) -> None:
    method, body = ("POST", ROUTES.get(route, {})) if route in (*ROUTES, "/mcp") else ("GET", None)
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example"):
        status, told = post(f"{server.url}{route}", body, {"Host": host}, method)
        assert status == 403
        assert "Host must be" in said(told)


def test_the_key() -> None:
    settings = AgentSettings(api_key="k", page="<p>page</p>")
    with BackgroundAgentServer(queue_of(), settings) as server:
        for route, body in {**ROUTES, "/mcp": {}}.items():
            for headers in ({}, {"Authorization": "Bearer K"}, {"Authorization": "k"}):
                status, told = post(f"{server.url}{route}", body, headers)
                assert status == 401, route
                assert "Authorization: Bearer KEY" in said(told)
        right = {"Authorization": "Bearer k", "Host": "proxy.example"}
        assert post(f"{server.url}/v1/chat/completions", CHAT, right)[0] == 200
        assert ask_page(server.url, "Who?", Authorization="Bearer k")[-1]["answer"] == "Rome"
        for route in ("/v1/models", "/metrics"):
            assert post(f"{server.url}{route}", None, method="GET")[0] == 401
        client = http.client.HTTPConnection("127.0.0.1", server.port)
        for open_route in ("/", "/health"):
            client.request("GET", open_route)
            answer = client.getresponse()
            answer.read()
            assert answer.status == 200


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": 5}, "model must be a text"),
    ({"messages": None}, "messages must be a list"),
    ({"messages": []}, "messages must be a list"),
    ({"messages": "Who?"}, "messages must be a list"),
    ({"messages": [5]}, r"messages[0].role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role must be user"),
    ({"messages": [{"role": "user"}]}, "messages[0].content must be a text"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be a text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": " \n"}]},
        "messages[0].content must hold",
    ),
    ({"messages": [*CHAT["messages"], {"role": "user", "content": ""}]}, "messages[1].content"),
    ({"stream": 1}, "stream must be true or false"),
    ({"stream_options": []}, "stream_options must be an object"),
    ({"stream_options": {"include_usage": 1}}, "include_usage must be true or false"),
    ({"stream_options": {"more": True}}, "stream_options must hold include_usage alone"),
    ({"temperature": "hot"}, "temperature must be a number"),
    ({"temperature": True}, "temperature must be a number"),
    ({"temperature": -1}, "temperature must be a number"),
    ({"temperature": float("nan")}, "temperature must be a number"),
    ({"max_tokens": 0}, "max_tokens must be a whole number"),
    ({"max_completion_tokens": 201}, "max_completion_tokens must be a whole number from 1 to 200"),
    ({"seed": 2**63}, "seed must be a whole number"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"n": 2}, "n must be 1"),
    ({"n": True}, "n must be 1"),
    ({"stop": ["x"]}, "stop must be None"),
    ({"tools": [{"type": "function"}]}, "tools must be []"),
    ({"response_format": {"type": "json_object"}}, "response_format must be"),
    ({"logprobs": True}, "logprobs must be False"),
    ({"temperatures": 1}, "'temperatures' is no field that is known here; did you mean"),
]


@pytest.mark.parametrize(("change", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_field_that_is_wrong_is_named(
    change: dict[str, Any], says: str, server: BackgroundAgentServer
) -> None:
    status, told = post(f"{server.url}/v1/chat/completions", CHAT | change)
    assert status == 400
    assert says in said(told)
    assert len(said(told)) < 300


def test_a_route_that_is_not_there_is_refused_like_the_others(
    server: BackgroundAgentServer,
) -> None:
    status, told = post(f"{server.url}/v1/completions", {})
    assert status == 404
    assert said(told).startswith("no route POST /v1/completions; known: POST /ask")
    status, told = post(f"{server.url}/v1/models", {})
    assert status == 405
    assert "POST /v1/models" in said(told)


def test_another_model_is_not_here(server: BackgroundAgentServer) -> None:
    status, told = post(f"{server.url}/v1/chat/completions", CHAT | {"model": "gpt"})
    assert (status, said(told)) == (404, "model must be 'research', got 'gpt'")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "question must be a text, got None"),
        ({"question": ["Who?"]}, "question must be a text"),
        ({"question": "\t"}, "question must hold a question"),
        ({"question": "Who \ud800?"}, "question must be text that UTF-8 can write"),
        ({"question": "x" * (LONGEST_QUESTION + 1)}, f"at most {LONGEST_QUESTION} characters"),
        ({"question": "Who?", "top_k": 3}, "the body must hold question alone, got 'top_k'"),
    ],
)
def test_a_wrong_question_is_named(
    body: dict[str, Any], says: str, server: BackgroundAgentServer
) -> None:
    status, told = post(f"{server.url}/ask", body)
    assert status == 400
    assert says in said(told)


def test_what_was_said_before_is_counted_and_not_read() -> None:
    shown: list[Any] = []

    def say(one: Any) -> str:
        shown.append(one)
        return answers(one)

    before = [{"role": "system", "content": "S"}, {"role": "user", "content": "earlier"}]
    parts = [{"type": "text", "text": "And now"}, {"type": "text", "text": "what?"}]
    messages = [*before, {"role": "assistant", "content": "x"}, {"role": "user", "content": parts}]
    with BackgroundAgentServer(queue_of(say)) as server:
        status, told = post(f"{server.url}/v1/chat/completions", CHAT | {"messages": messages})
    assert status == 200
    assert told["research"]["unread_messages"] == 3
    assert shown == ["And now\nwhat?"]


@pytest.mark.parametrize("route", ROUTES)
def test_who_hangs_up_is_dropped(route: str, stalled: Stalled) -> None:
    """Over a real connection: the question under way and those that wait are given up."""
    with BackgroundAgentServer(queue_of(stalled)) as server:
        stream = {"stream": True} if "chat" in route else {}
        first = asking(server, route, **stream)
        assert stalled.begun.wait(60)
        waiting = [asking(server, route, **stream) for _ in range(3)]
        until(lambda: server.queue.waiting == 3)
        for client in waiting:
            client.close()
        until(lambda: server.queue.waiting == 0)
        first.close()
        until(lambda: bool(server.queue._gone))
        stalled.go_on.set()
        until(lambda: not server.queue._running)
        assert stalled.asked == 1, "it searched, nobody waits, so it is not asked again"
        assert post(f"{server.url}/v1/chat/completions", CHAT)[0] == 200


def test_only_so_many_questions_wait(stalled: Stalled) -> None:
    with BackgroundAgentServer(queue_of(stalled, max_waiting=2)) as server:
        clients = [asking(server, "/ask")]
        assert stalled.begun.wait(60)
        clients += [asking(server, "/ask") for _ in range(2)]
        until(lambda: server.queue.waiting == 2)
        for route, body in ROUTES.items():
            status, told = post(f"{server.url}{route}", body)
            assert (status, said(told)) == (429, "2 requests wait, more may not; ask again later")
        stalled.go_on.set()
        for client in clients:
            assert b'"answer": "Rome"' in client.getresponse().read()


def test_fifty_questions_at_once(server: BackgroundAgentServer) -> None:
    clients = [asking(server, "/v1/chat/completions") for _ in range(50)]
    for client in clients:
        reply = json.loads(client.getresponse().read())
        assert reply["choices"][0]["message"]["content"] == "Rome"
    assert server.queue.runs <= 50


@pytest.mark.parametrize(
    "half", [b"", b"POST /ask HT", b"POST /ask HTTP/1.1\r\nHost: localhost\r\n"]
)
def test_half_a_request_holds_up_nobody(half: bytes, server: BackgroundAgentServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(half)
        assert ask_page(server.url, "Who?")[-1]["answer"] == "Rome"


def test_half_a_body_is_given_up(
    server: BackgroundAgentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("research_rl.trainers.agent.app._BODY_SECONDS", 0.2)
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    client.putrequest("POST", "/ask")
    client.putheader("Content-Type", "application/json")
    client.putheader("Content-Length", "100")
    client.endheaders()
    client.send(b'{"question"')
    assert client.getresponse().status == 408
    client.close()


def test_an_answer_that_takes_too_long(stalled: Stalled) -> None:
    with BackgroundAgentServer(queue_of(stalled), AgentSettings(timeout=0.3)) as server:
        status, told = post(f"{server.url}/v1/chat/completions", CHAT)
        assert (status, said(told)) == (504, "no answer within 0.3 s")
        error = {"event": "error", "message": "no answer within 0.3 s", "status": 504}
        assert ask_page(server.url, "Who?") == [error]
        body = asking(server, "/v1/chat/completions", stream=True).getresponse().read().decode()
        assert '"no answer within 0.3 s"' in body
        assert "[DONE]" not in body
        stalled.go_on.set()


def test_an_index_that_is_gone() -> None:
    def say(shown: Any) -> str:
        return RESEARCH.search("boss")

    with BackgroundAgentServer(queue_of(say, retriever=Ranked(dead=True))) as server:
        status, told = post(f"{server.url}/v1/chat/completions", CHAT)
        assert (status, said(told)) == (503, "http://nowhere did not answer 3 attempts")
        assert ask_page(server.url, "Who?")[-1]["event"] == "error"


def test_a_model_that_fails_is_told() -> None:
    def say(shown: Any) -> Generation:
        return Generation.failed("status 500")

    with BackgroundAgentServer(queue_of(say)) as server:
        told = ask_page(server.url, "Who?")[-1]
    assert (told["answer"], told["no_answer"]) == ("", "the server failed: status 500")


def test_it_stops_within_its_grace(stalled: Stalled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("research_rl.trainers.agent.app._GRACE", 1)
    threading.Timer(2.0, stalled.go_on.set).start()  # a step of the model under way is waited for
    with BackgroundAgentServer(queue_of(stalled)) as server:
        clients = [asking(server, route) for route in (*ROUTES, *ROUTES)]
        assert stalled.begun.wait(60)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    for client in clients:
        with suppress(OSError, http.client.HTTPException):
            client.getresponse().read()
        client.close()


def test_the_counters(server: BackgroundAgentServer) -> None:
    ask_page(server.url, "Who?")
    client = http.client.HTTPConnection("127.0.0.1", server.port)
    client.request("GET", "/metrics")
    text = client.getresponse().read().decode()
    assert "research_agent_answers_total 1.0" in text
    assert "research_agent_waiting 0.0" in text
