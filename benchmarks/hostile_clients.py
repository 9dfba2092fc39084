"""Hostile clients of the two servers, for server_load.py.

    python benchmarks/hostile_clients.py --server policy --port 8000 --kind large

Each kind does one thing again and again: send a body that is too large or holds too many values,
open connections and say nothing, stop in the middle of a body, ask for much and hang up, send what
is no HTTP, lie about the type, ask for more than is allowed.
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
_LARGE = 9 * 2**20


class _Always:
    """An event that is never set, for a command that Ctrl-C ends."""

    def is_set(self) -> bool:
        """Return False."""
        return False


def run_hostile(mode: str, port: int, kind: str, clients: int, pause: float, stop: Any) -> None:
    """Attack from several threads until ``stop`` is set; kind ``all`` takes turns."""
    os.nice(10)
    kinds = list(KINDS["policy" if mode == "policy" else "retrieval"])

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


def attack(mode: str, port: int, kind: str) -> None:
    """Make one attempt; whatever the server does to it is no error here."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        KINDS["policy" if mode == "policy" else "retrieval"][kind](connection, mode)


def _route(mode: str) -> str:
    return "/v1/completions" if mode == "policy" else "/batch_search"


def _head(mode: str, length: int, kind: str = "application/json", host: str = "127.0.0.1") -> bytes:
    return (
        f"POST {_route(mode)} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


def _post(connection: socket.socket, mode: str, body: bytes, **head: str) -> None:
    connection.sendall(_head(mode, len(body), **head) + body)
    while connection.recv(65536):
        """The answer is read to its end."""


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
    more = {"prompt": "word " * 800_000} if mode == "policy" else {"query": ["x" * 10**6]}
    return _asked(mode, **more)


def _asked(mode: str, **more: Any) -> bytes:
    if mode == "policy":
        body: dict[str, Any] = {"model": "policy", "prompt": [5, 6], "max_tokens": 4, "seed": 1}
    else:
        body = {"query": ["Who?"], "top_n": 5}
    return json.dumps(body | more).encode()


def large(connection: socket.socket, mode: str) -> None:
    """A body of nine megabytes, sent although the server says no."""
    _post(connection, mode, _body(mode, "large"))


def many_values(connection: socket.socket, mode: str) -> None:
    """Seven megabytes of numbers."""
    _post(connection, mode, _body(mode, "many_values"))


def deep(connection: socket.socket, mode: str) -> None:
    """A hundred thousand brackets in each other."""
    _post(connection, mode, b"[" * 100_000)


def stalled(connection: socket.socket, mode: str) -> None:
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


def hang_up(connection: socket.socket, mode: str) -> None:
    """Ask for the most that is allowed, and leave at once."""
    if mode == "policy":
        body = _asked(mode, max_tokens=1000, min_tokens=1000, temperature=0.7)
    else:
        body = _body(mode, "hang_up")
    connection.sendall(_head(mode, len(body)) + body)


def no_http(connection: socket.socket, mode: str) -> None:
    """Random bytes, and a TLS greeting."""
    connection.sendall(b"\x16\x03\x01\x02\x00\x01" + os.urandom(2000) + b"\r\n\r\n")
    connection.recv(65536)


def page(connection: socket.socket, mode: str) -> None:
    """What a web page can send: a plain text, or under another name."""
    _post(connection, mode, _asked(mode), kind="text/plain", host="evil.example")


def too_much(connection: socket.socket, mode: str) -> None:
    """More stop strings, longer ones, longer prompts or more queries than are allowed."""
    if mode == "policy":
        _post(connection, mode, _asked(mode, stop=["x" * 10_000]))
    else:
        _post(connection, mode, _body(mode, "too_much"))


def too_long(connection: socket.socket, mode: str) -> None:
    """A prompt of four million characters, or a query of one million."""
    _post(connection, mode, _body(mode, "too_long"))


def not_read(connection: socket.socket, mode: str) -> None:
    """Ask, and do not read the answer for a while."""
    body = _asked(mode)
    connection.sendall(_head(mode, len(body)) + body)
    time.sleep(1.0)


_BOTH = (large, many_values, deep, stalled, hang_up, no_http, page, too_much, too_long, not_read)
KINDS: dict[str, dict[str, Callable[[socket.socket, str], None]]] = {
    name: {each.__name__: each for each in _BOTH} for name in ("retrieval", "policy")
}
"""What hostile clients do, for each server."""


def main() -> None:
    """Attack a server until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--server", choices=tuple(KINDS), default="retrieval")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kind", choices=(*KINDS["policy"], "all"), default="all")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.1)
    args = parser.parse_args()
    run_hostile(args.server, args.port, args.kind, args.clients, args.pause, _Always())


if __name__ == "__main__":
    main()
