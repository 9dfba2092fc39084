"""Clients that stall, hang up or send too much at once cost the server no more than themselves."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

pytest.importorskip("fastapi")

import uvicorn
from doubles.fake_retrieval import post
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from research_rl.envs.web import connections, keys
from research_rl.envs.web import server as server_module
from research_rl.envs.web.json_values import ValueCount
from research_rl.envs.web.server import (
    BodyBudget,
    Refused,
    ServerThread,
    answered,
    json_body,
    listen,
    make_app,
    make_server,
    refusal,
)

SOON = 0.2


class Stalls:
    """An application with a route that waits for ever, and one with a large answer."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.begun = threading.Event()
        self.server: uvicorn.Server

    async def wait(self, request: Request) -> Response:
        try:
            await json_body(request)
            await answered(request, None, self._forever())
        except Refused as error:
            return refusal(error, {})
        raise AssertionError("it waits for ever")

    async def _forever(self) -> None:
        self.begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            self.cancelled.set()

    async def large(self) -> Response:
        return Response(b"x" * 2**26)

    async def middling(self) -> Response:
        return Response(b"x" * 50_000)  # more than the system's buffers, less than asyncio's mark

    async def echo(self, request: Request) -> Response:
        try:
            return JSONResponse(await json_body(request, budget=BodyBudget(1000, free=100)))
        except Refused as error:
            return refusal(error, {"why": str(error)})


@pytest.fixture
def stalls() -> Stalls:
    return Stalls()


@pytest.fixture
def port(stalls: Stalls, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(connections, "HEAD_SECONDS", SOON)
    monkeypatch.setattr(connections, "READ_SECONDS", SOON)
    app = make_app("stalls", lifespan)
    app.add_api_route("/wait", stalls.wait, methods=["POST"])
    app.add_api_route("/large", stalls.large, methods=["GET"])
    app.add_api_route("/middling", stalls.middling, methods=["GET"])
    app.add_api_route("/echo", stalls.echo, methods=["POST"])
    stalls.server = make_server(app, "warning", grace=1)
    bound = listen("127.0.0.1", 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of its connections too
    with ServerThread(stalls.server, bound) as running:
        yield running.port


def ends(connection: socket.socket) -> bool:
    """Whether the server closes the connection within five seconds."""
    connection.settimeout(5)
    with suppress(ConnectionResetError):
        while connection.recv(2**20):
            pass
    return True


@pytest.mark.parametrize("said", [b"", b"POST /wait HT", b"POST /wait HTTP/1.1\r\nHost: a\r\nX: "])
def test_a_connection_that_says_nothing_ends(said: bytes, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(said)
        assert ends(connection)


def test_a_connection_that_stops_behind_an_answer_ends(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n[]")
        assert b"200" in connection.recv(4096)
        connection.sendall(b"POST /ec")
        assert ends(connection)


def test_a_slow_request_is_answered_all_the_same(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n[")
        time.sleep(2 * SOON)  # the headers are there: from here on the body's time counts
        connection.sendall(b"]")
        assert b"200" in connection.recv(4096)


def test_a_client_that_does_not_read_is_cut_off(port: int) -> None:
    taken = 2**26
    for patience in (4, 16, 64):  # a busy machine looks at its connections late
        if taken == 2**26:
            taken = taken_late(port, patience * SOON)
    assert taken < 2**26


def taken_late(port: int, seconds: float) -> int:
    """Return how much of a large body there is for a client that begins to read late."""
    taken = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(seconds)
        connection.settimeout(5)
        with suppress(ConnectionResetError):
            while part := connection.recv(2**20):
                taken += len(part)
    return min(taken, 2**26)  # without the head


@pytest.mark.parametrize("more", ["", "Connection: close\r\n"])
def test_the_rest_of_an_answer_that_is_not_read_holds_no_connection(
    more: str, port: int, stalls: Stalls
) -> None:
    held = stalls.server.server_state.connections
    with small_reader(port) as connection:
        connection.sendall(f"GET /middling HTTP/1.1\r\nHost: a\r\n{more}\r\n".encode())
        assert until(lambda: bool(held))
        assert until(lambda: not held), "it is held as long as the client likes"


def test_who_reads_and_asks_on_is_not_cut_off(port: int) -> None:
    with small_reader(port) as connection:
        connection.settimeout(10)
        for _ in range(4):
            connection.sendall(b"GET /middling HTTP/1.1\r\nHost: a\r\n\r\n")
            taken = b""
            while taken.count(b"x") < 50_000:
                part = connection.recv(4096)
                assert part, "it was cut off"
                taken += part
                time.sleep(SOON / 40)


def small_reader(port: int) -> socket.socket:
    """A connection whose system takes little unasked."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", port))
    return connection


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it comes about."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_work_ends_when_its_client_hangs_up(port: int, stalls: Stalls) -> None:
    asking = http.client.HTTPConnection("127.0.0.1", port)
    asking.request("POST", "/wait", b"{}", {"Content-Type": "application/json"})
    assert stalls.begun.wait(10)
    assert not stalls.cancelled.is_set()
    asking.close()
    assert stalls.cancelled.wait(10)


def test_a_server_stops_within_its_grace_under_load(
    stalls: Stalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    app = make_app("stalls", lifespan)
    app.add_api_route("/wait", stalls.wait, methods=["POST"])
    running = ServerThread(make_server(app, "critical", grace=1), listen("127.0.0.1", 0))
    with running:
        idle = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(5)]
        asking = [http.client.HTTPConnection("127.0.0.1", running.port) for _ in range(5)]
        for one in asking:
            one.request("POST", "/wait", b"{}", {"Content-Type": "application/json"})
        assert stalls.begun.wait(10)
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    for held in idle:
        held.close()
    for one in asking:
        one.close()


def test_many_values_and_many_bodies_are_refused(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_VALUES", 50)
    status, told = post(f"http://127.0.0.1:{port}/echo", [1] * 100)
    assert (status, told["why"]) == (413, "a body must hold at most 50 values, got more")
    assert post(f"http://127.0.0.1:{port}/echo", 'a, [b"\\' * 60)[0] == 200
    hidden = json.dumps(["\u2200", *[1] * 40], ensure_ascii=False).encode("utf-16")
    assert post(f"http://127.0.0.1:{port}/echo", hidden)[0] == 400
    status, told = post(f"http://127.0.0.1:{port}/echo", "x" * 2000)
    assert status == 429
    assert "ask again later" in told["why"]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_values_are_counted_outside_of_texts_however_a_body_arrives(size: int) -> None:
    value = [{"a,[": ['\\",{', "\\\\", "", '"'], "b": [1, [2, {}]]}, "\u2200, \\", 'x"']
    for body in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        data, counted = body.encode(), ValueCount()
        for start in range(0, len(data), size):
            counted.add(data[start : start + size])
        assert counted.values == 14, "a comma or a bracket each"


def test_many_bodies_that_do_not_end_keep_out_no_small_one() -> None:
    budget = BodyBudget(1000, free=100)
    held = [budget.taking() for _ in range(2)]
    for body in held:
        body.add(90)
        body.add(510)
    with pytest.raises(Refused, match="1000 bytes") as refused:
        held[0].add(1)
    assert refused.value.status == 429
    small = budget.taking()
    small.add(100)
    with pytest.raises(Refused):
        small.add(1)
    for body in (*held, small):
        body.end()
    assert budget.held == 0


def test_no_server_speaks_websocket(stalls: Stalls, port: int) -> None:
    """Its handshake would pass by the gate."""
    assert stalls.server.config.ws_protocol_class is None


def test_the_servers_key_is_not_the_clients(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RESEARCH_SERVER_KEY", raising=False)
    monkeypatch.delenv("RESEARCH_API_KEY", raising=False)
    assert keys.server_key() is None
    monkeypatch.setenv("RESEARCH_API_KEY", "sent")
    with caplog.at_level(logging.WARNING):
        assert keys.server_key() == "sent"  # a server that had a key does not stand open
    assert "RESEARCH_SERVER_KEY" in caplog.text
    monkeypatch.setenv("RESEARCH_SERVER_KEY", "wanted")
    assert keys.server_key() == "wanted"
    assert keys.key_for("http://a", "RESEARCH_API_KEY") == "sent"
