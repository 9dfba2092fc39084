"""Hostile clients of the three servers, for server_load.py.

    python benchmarks/hostile_clients.py --server policy --port 8000 --kind large

Each kind does one thing again and again: send a body that is too large or holds too many values,
open connections and say nothing, stop in the middle of a body, hold many large bodies, ask for
much and hang up, send what is no HTTP, lie about the type, ask for more than is allowed. The agent
also meets wrong keys, streams that are left or read slowly, and a flood of questions.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

SECONDS = 10.0
KEY = "benchmark"
"""That the served agent wants; the others want none."""
LONGEST_ANSWER = 256
"""Tokens that the served agent writes at most."""
_LARGE = 9 * 2**20


class _Always:
    """An event that is never set, for a command that Ctrl-C ends."""

    def is_set(self) -> bool:
        """Return False."""
        return False


def run_hostile(mode: str, port: int, kind: str, clients: int, pause: float, stop: Any) -> None:
    """Attack from several threads until ``stop`` is set; kind ``all`` takes turns."""
    os.nice(10)
    kinds = list(KINDS.get(mode, KINDS["retrieval"]))

    def work(client: int) -> None:
        number = client
        while not stop.is_set():
            attack(mode, port, kinds[number % len(kinds)] if kind == "all" else kind)
            number += 1
            time.sleep(pause)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def attack(mode: str, port: int, kind: str) -> bytes | None:
    """Make one attempt, and return what was answered, if that was read.

    Whatever the server does to it is no error here.
    """
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        return KINDS.get(mode, KINDS["retrieval"])[kind](connection, mode)
    return None


def _route(mode: str) -> str:
    routes = {"policy": "/v1/completions", "agent": "/v1/chat/completions"}
    return routes.get(mode, "/batch_search")


def _head(
    mode: str,
    length: int,
    kind: str = "application/json",
    host: str = "127.0.0.1",
    key: str = KEY,
) -> bytes:
    return (
        f"POST {_route(mode)} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
        f"Authorization: Bearer {key}\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


def _post(connection: socket.socket, mode: str, body: bytes, **head: str) -> bytes:
    with suppress(OSError):  # it may be refused before it is sent
        connection.sendall(_head(mode, len(body), **head) + body)
    return _read(connection)


def _read(connection: socket.socket) -> bytes:
    """The answer, read to its end, or as far as there is one."""
    answer = bytearray()
    with suppress(OSError):
        while part := connection.recv(65536):
            answer += part
    return bytes(answer)


@cache
def _body(mode: str, kind: str) -> bytes:
    """The large bodies, each made once: making one costs more than the server's refusal."""
    if kind == "large":
        return b" " * _LARGE
    if kind == "many_values":
        return b"[" + b"1," * (7 * 2**19) + b"1]"
    if kind == "hang_up":
        return _asked(mode, query=[f"query {i}" for i in range(4096)])
    if kind == "too_much":
        return _asked(mode, query=["x"] * 100_000)
    if mode == "agent":
        return _asked(mode, messages=[{"role": "user", "content": "x" * 8193}])
    more = {"prompt": "word " * 800_000} if mode == "policy" else {"query": ["x" * 10**6]}
    return _asked(mode, **more)


def _asked(mode: str, **more: Any) -> bytes:
    if mode == "agent":
        messages = [{"role": "user", "content": "Who is the boss of the rival of Nanbal ?"}]
        body: dict[str, Any] = {"model": "research", "messages": messages, "max_tokens": 4}
    elif mode == "policy":
        body = {"model": "policy", "prompt": [5, 6], "max_tokens": 4, "seed": 1}
    else:
        body = {"query": ["Who?"], "top_n": 5}
    return json.dumps(body | more).encode()


def large(connection: socket.socket, mode: str) -> bytes | None:
    """A body of nine megabytes, sent although the server says no."""
    return _post(connection, mode, _body(mode, "large"))


def many_values(connection: socket.socket, mode: str) -> bytes | None:
    """Seven megabytes of numbers."""
    return _post(connection, mode, _body(mode, "many_values"))


def deep(connection: socket.socket, mode: str) -> bytes | None:
    """A hundred thousand brackets in each other."""
    return _post(connection, mode, b"[" * 100_000)


def stalled(connection: socket.socket, mode: str) -> bytes | None:
    """Ten connections that say nothing, half a head or half a body, for a second."""
    peer = connection.getpeername()
    held = []
    for number in range(10):
        other = socket.create_connection(peer, SECONDS)
        other.sendall((b"", b"POST /x HT", _head(mode, 1000) + b"{")[number % 3])
        held.append(other)
    time.sleep(1.0)
    for other in held:
        other.close()
    return None


def held_bodies(connection: socket.socket, mode: str) -> bytes | None:
    """Almost all of the largest bodies that are taken, without their end, for a second."""
    size = 2**20 if mode == "agent" else 7 * 2**20
    peer, held = connection.getpeername(), []
    for _ in range(16 if mode == "agent" else 3):
        other = socket.create_connection(peer, SECONDS)
        other.settimeout(0.5)
        with suppress(OSError):
            other.sendall(_head(mode, size) + b" " * (size - 1))
        held.append(other)
    time.sleep(1.0)
    for other in held:
        other.close()
    return None


def hang_up(connection: socket.socket, mode: str) -> bytes | None:
    """Ask for the most that is allowed, and leave at once."""
    if mode == "policy":
        body = _asked(mode, max_tokens=1000, min_tokens=1000, temperature=0.7)
    elif mode == "agent":
        body = _asked(mode, max_tokens=LONGEST_ANSWER)
    else:
        body = _body(mode, "hang_up")
    connection.sendall(_head(mode, len(body)) + body)
    return None


def no_http(connection: socket.socket, mode: str) -> bytes | None:
    """Random bytes, and a TLS greeting."""
    connection.sendall(b"\x16\x03\x01\x02\x00\x01" + os.urandom(2000) + b"\r\n\r\n")
    return connection.recv(65536)


def page(connection: socket.socket, mode: str) -> bytes | None:
    """What a web page can send: a plain text, or under another name."""
    return _post(connection, mode, _asked(mode), kind="text/plain", host="evil.example")


def too_much(connection: socket.socket, mode: str) -> bytes | None:
    """A longer stop string, more tokens or more queries than are allowed."""
    if mode == "policy":
        return _post(connection, mode, _asked(mode, stop=["x" * 10_000]))
    if mode == "agent":
        return _post(connection, mode, _asked(mode, max_tokens=10**6))
    return _post(connection, mode, _body(mode, "too_much"))


def too_long(connection: socket.socket, mode: str) -> bytes | None:
    """A prompt of four million characters, a query of one million, a question of 8,193."""
    return _post(connection, mode, _body(mode, "too_long"))


def not_read(connection: socket.socket, mode: str) -> bytes | None:
    """Ask, and do not read the answer for a while."""
    body = _asked(mode)
    connection.sendall(_head(mode, len(body)) + body)
    time.sleep(1.0)
    return None


def wrong_key(connection: socket.socket, mode: str) -> bytes | None:
    """A question with a key that is not the server's."""
    return _post(connection, mode, _asked(mode), key="guessed")


def left_stream(connection: socket.socket, mode: str) -> bytes | None:
    """The longest stream, left in its middle."""
    body = _asked(mode, max_tokens=LONGEST_ANSWER, stream=True)
    connection.sendall(_head(mode, len(body)) + body)
    connection.recv(1000)
    return None


def slow_reader(connection: socket.socket, mode: str) -> bytes | None:
    """The longest stream, of which a few bytes are read now and then."""
    body = _asked(mode, max_tokens=LONGEST_ANSWER, stream=True)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.sendall(_head(mode, len(body)) + body)
    for _ in range(20):
        connection.recv(10)
        time.sleep(0.1)
    return None


def flood(connection: socket.socket, mode: str) -> bytes | None:
    """Sixteen questions at once that cannot be answered together; all answers are waited for."""
    peer, asking = connection.getpeername(), []
    for _ in range(16):
        other = socket.create_connection(peer, 6 * SECONDS)
        body = _asked(mode, max_tokens=64, seed=int.from_bytes(os.urandom(4), "big"))
        other.sendall(_head(mode, len(body)) + body)
        asking.append(other)
    answers = [_read(other) for other in asking]
    for other in asking:
        other.close()
    return min(answers, key=lambda answer: answer.startswith(b"HTTP/1.1 200"))


_ALL = (
    *(large, many_values, deep, stalled, held_bodies, hang_up, no_http, page, too_much, too_long),
    not_read,
)
_AGENT = (wrong_key, left_stream, slow_reader, flood)
SLOW = ("stalled", "held_bodies", "slow_reader", "flood")
"""Kinds that take seconds by themselves, or leave the honest ones no room."""
KINDS: dict[str, dict[str, Callable[[socket.socket, str], bytes | None]]] = {
    "retrieval": {each.__name__: each for each in _ALL},
    "policy": {each.__name__: each for each in _ALL},
    "agent": {each.__name__: each for each in (*_ALL, *_AGENT)},
}
"""What hostile clients do, for each server."""


def main() -> None:
    """Attack a server until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--server", choices=tuple(KINDS), default="retrieval")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kind", choices=(*KINDS["agent"], "all"), default="all")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.1)
    args = parser.parse_args()
    run_hostile(args.server, args.port, args.kind, args.clients, args.pause, _Always())


if __name__ == "__main__":
    main()
