"""Every fault of a server or a request ends in a clear error or a recovery, never in a wrong or
empty result."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from doubles.fake_retrieval import FakeRetriever, StubServer, post
from doubles.places import TESTS

from research_rl.envs.retrieval.web.client import RemoteRetriever
from research_rl.envs.retrieval.web.config import ServerConfig
from research_rl.envs.retrieval.web.server import BackgroundServer
from research_rl.envs.types import Question, RetrieverUnavailable
from research_rl.envs.vector import ReSearchVectorEnv

FAKE = FakeRetriever()
DOC = {"id": "d0", "contents": "a é\nbody 0"}
GOOD = [[[DOC]], [[1.0]]]
WANTED = FAKE.search(["a"], 1)


def client(url: str, **settings: Any) -> RemoteRetriever:
    return RemoteRetriever(url, **{"dialect": "research", "retry_window": 0.3, **settings})


def raw(data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """A reply written to the socket byte for byte; then the connection closes."""

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(data)

    return write


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A reply of which a byte arrives now and then, so that no single read ever times out."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(50):
        time.sleep(0.05)
        handler.wfile.write(b" ")
        handler.wfile.flush()


TRUNCATED = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n[[[{")
CHUNK_LOST = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[[[{\n\r\n")
NO_LENGTH = raw(b"HTTP/1.0 200 OK\r\n\r\n[[[{")

PASSING = {
    "bad gateway": (502, b"<html>"),
    "unavailable": (503, {"detail": "loading"}),
    "gateway timeout": (504, {"detail": "slow"}),
    "internal error": (500, b"Internal Server Error"),
    "busy": (429, {"detail": "busy"}),
    "no json": (200, b"<html>garbage</html>"),
    "half a json": (200, b'[[[{"id": "d0", "cont'),
    "empty body": (200, b""),
    "truncated": (200, TRUNCATED),
    "lost chunk": (200, CHUNK_LOST),
    "no length, cut": (200, NO_LENGTH),
    "no http": (200, raw(b"SSH-2.0-OpenSSH_9.6\r\n")),
    "closed at once": (200, raw(b"")),
    "drip": (200, drip),
}
LASTING = {
    "bad request": (400, {"detail": "bad"}, "status 400"),
    "not found": (404, {"detail": "Not Found"}, "status 404"),
    "unprocessable": (422, {"detail": "no"}, "status 422"),
    "no content": (204, b"", "status 204"),
    "redirect": (302, b"", "status 302"),
    "integer id": (200, [[[{"id": 7, "contents": "t"}]], [[1.0]]], "id must be a string"),
    "no id": (200, [[[{"contents": "t"}]], [[1.0]]], 'must hold "id"'),
    "too few rows": (200, [[], []], "each of 1 queries, got 0"),
    "too many rows": (200, [[[DOC], [DOC]], [[1.0], [1.0]]], "each of 1 queries, got 2"),
    "no scores": (200, [[DOC]], "documents, scores"),
    "infinite score": (200, b'[[[{"id": "d", "contents": "t"}]], [[Infinity]]]', "finite"),
    "nothing found": (200, [[[]], [[]]], "no passage for the query 'a'"),
    "error as text": (200, {"error": "index not loaded"}, "must be an array"),
    "null": (200, b"null", "must be an array, got null"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_recovered_from(fault: str) -> None:
    replies = iter([PASSING[fault]] * 2)
    with StubServer(lambda path, body: next(replies, (200, GOOD))) as stub:
        found = client(stub.url, timeout=0.3, retry_window=20).search(["a"], 1)
    assert found == WANTED
    assert len(stub.requests) == 3


@pytest.mark.parametrize("fault", ["unavailable", "no json", "truncated", "closed at once"])
def test_a_fault_that_stays_ends_in_an_error_that_says_all(fault: str) -> None:
    with (
        StubServer(lambda path, body: PASSING[fault]) as stub,
        pytest.raises(RetrieverUnavailable) as caught,
    ):
        client(stub.url).search(["a"], 1)
    message = str(caught.value)
    assert stub.url in message
    assert f"{len(stub.requests)} attempts" in message
    assert "last error: " in message
    assert "resume the run" in message


@pytest.mark.parametrize("fault", LASTING)
def test_a_lasting_fault_is_an_error_at_once(fault: str) -> None:
    status, reply, message = LASTING[fault]
    with (
        StubServer(lambda path, body: (status, reply)) as stub,
        pytest.raises(RetrieverUnavailable, match=message),
    ):
        client(stub.url, retry_window=60).search(["a"], 1)
    assert len(stub.requests) == 1


def test_one_failing_part_fails_the_whole_search_soon() -> None:
    def answer(path: str, body: Any) -> tuple[int, Any]:
        return (400, {"detail": "bad"}) if body["query"] == ["a"] else (503, {"detail": "wait"})

    started = time.monotonic()
    with (
        StubServer(answer) as stub,
        pytest.raises(RetrieverUnavailable, match="status 400"),
    ):
        client(stub.url, retry_window=60, max_batch=1).search(["b", "a", "c"], 1)
    assert time.monotonic() - started < 5


def test_a_server_may_find_nothing_where_that_is_allowed() -> None:
    with StubServer(lambda path, body: (200, [[[]], [[]]])) as stub:
        assert client(stub.url, allow_empty=True).search(["a"], 1) == [[]]


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RetrieverUnavailable, match="refused"):
        client(f"http://127.0.0.1:{port}").search(["a"], 1)


def test_a_server_that_accepts_and_never_answers() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(RetrieverUnavailable, match=r"no answer within 0.2 s"):
            client(url, timeout=0.2).search(["a"], 1)


def test_a_slow_index_ends_in_the_clients_timeout() -> None:
    slow = FakeRetriever(delay=0.5)
    with BackgroundServer(slow) as server:
        with pytest.raises(RetrieverUnavailable, match=r"no answer within 0.2 s"):
            client(server.url, timeout=0.2, retry_window=0.1).search(["a"], 1)
        slow.delay = 0.0
        assert client(server.url, timeout=5).search(["a"], 1) == WANTED


def test_an_empty_query_is_the_servers_to_refuse() -> None:
    with BackgroundServer(FAKE) as server:
        with pytest.raises(RetrieverUnavailable, match=r"query 1 must not be empty; .*search"):
            client(server.url, retry_window=60).search(["a", ""], 1)
        assert post(server.url + "/search", {"query": "", "top_n": 1})[0] == 400
    with BackgroundServer(FAKE, ServerConfig(empty_query="search")) as server:
        assert client(server.url).search(["", "a"], 1) == FAKE.search(["", "a"], 1)


def test_a_lone_surrogate_is_asked_for_as_a_local_index_reads_it() -> None:
    with BackgroundServer(FAKE) as server:
        assert client(server.url).search(["a \ud800"], 1) == FAKE.search(["a \ufffd"], 1)


def test_a_query_of_ten_megabytes_is_refused_and_the_server_lives_on() -> None:
    with BackgroundServer(FAKE) as server:
        remote = client(server.url, retry_window=5)
        with pytest.raises(RetrieverUnavailable, match=r"status 413, .*8388608 bytes"):
            remote.search(["x" * 10_000_000], 1)
        assert remote.search(["x" * 100_000], 1) == FAKE.search(["x" * 65_536], 1)
        assert remote.search(["a"], 1) == WANTED


def test_a_body_that_stops_half_way_does_not_hold_the_server() -> None:
    with BackgroundServer(FAKE) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as broken:
            broken.sendall(b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
        assert client(server.url).search(["a"], 1) == WANTED


def test_a_restarted_server_is_found_again() -> None:
    with BackgroundServer(FAKE) as server:
        remote = client(server.url, retry_window=20)
        assert remote.search(["a"], 1) == WANTED
    back = BackgroundServer(FAKE, port=server.port)
    timer = threading.Timer(0.5, back.__enter__)
    timer.start()
    try:
        assert remote.search(["a"], 1) == WANTED
    finally:
        timer.join()
        back.stop()


def play(remote: RemoteRetriever, between: Callable[[int], None]) -> list[object]:
    """Play four episodes side by side; return every observation and reward."""
    questions = [Question(f"q{i}", f"question {i}", (f"answer {i}",)) for i in range(4)]
    envs = ReSearchVectorEnv(4, autoreset_mode="Disabled", questions=questions, index=remote)
    seen: list[object] = [envs.reset(options={"questions": questions})[0]]
    for turn in range(3):
        between(turn)
        actions = [f"<think>x</think><search>{turn} of {i}</search>" for i in range(4)]
        observations, rewards, *_ = envs.step(actions)
        seen.append((list(observations), list(rewards)))
    return seen


def test_episodes_go_on_as_if_nothing_had_happened_when_the_server_comes_back() -> None:
    with BackgroundServer(FAKE) as server:
        undisturbed = play(client(server.url), lambda turn: None)
    servers = [BackgroundServer(FAKE, port=server.port).__enter__()]
    timers: list[threading.Timer] = []

    def fault(turn: int) -> None:
        if turn == 1:
            servers[0].stop()
            servers.append(BackgroundServer(FAKE, port=server.port))
            timers.append(threading.Timer(0.4, servers[1].__enter__))
            timers[0].start()

    try:
        assert play(client(server.url, retry_window=30), fault) == undisturbed
    finally:
        timers[0].join()
        servers[1].stop()


SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from doubles.fake_retrieval import FakeRetriever
from research_rl.envs.retrieval.web.server import serve_search
serve_search(FakeRetriever(delay=float(sys.argv[3])), port=int(sys.argv[2]))
"""


def start(port: int, delay: float) -> subprocess.Popen[bytes]:
    """Start a server in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SERVER, str(TESTS), str(port), str(delay)],
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.mark.slow
def test_a_server_killed_during_a_search_and_started_again(free_port: int) -> None:
    remote = client(f"http://127.0.0.1:{free_port}", retry_window=60)
    first = start(free_port, 0.3)
    try:
        assert remote.search(["a"], 1) == WANTED
        threading.Timer(0.15, first.kill).start()  # in the midst of the next search
        threading.Timer(1.0, lambda: servers.append(start(free_port, 0.0))).start()
        servers: list[subprocess.Popen[bytes]] = []
        queries = [f"q{i}" for i in range(50)]
        assert remote.search(queries, 3) == FAKE.search(queries, 3)
        assert first.wait() == -signal.SIGKILL
        servers[0].terminate()
        assert servers[0].wait(timeout=20) in (0, -signal.SIGTERM)
    finally:
        first.kill()


@pytest.mark.slow
def test_a_terminated_server_answers_what_is_in_flight(free_port: int) -> None:
    remote = client(f"http://127.0.0.1:{free_port}", retry_window=60)
    process = start(free_port, 0.5)
    try:
        remote.search(["a"], 1)
        threading.Timer(0.2, process.terminate).start()
        quick = client(f"http://127.0.0.1:{free_port}", retry_window=0)
        assert quick.search(["b"], 1) == FAKE.search(["b"], 1)
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)
    finally:
        process.kill()
