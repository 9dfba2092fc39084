"""Doubles for the tests of serving: a retriever in memory and small HTTP servers that misbehave."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from research_rl.envs.types import Passage, Retriever

Answer = Callable[[str, Any], tuple[int, Any]]


class FakeRetriever(Retriever):
    """Finds passages made from the query, so that a mix-up of queries cannot go unseen."""

    def __init__(self, delay: float = 0.0, name: str = "d", error: Exception | None = None) -> None:
        self.delay = delay
        self.name = name
        self.error = error
        self.calls: list[tuple[list[str], int]] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        self.calls.append((list(queries), k))
        time.sleep(self.delay)
        if self.error is not None:
            raise self.error
        return [self.passages(query, k) for query in queries]

    def passages(self, query: str, k: int) -> list[Passage]:
        return [
            Passage(f"{self.name}{rank}", f"{query} é\nbody {rank}", 1.0 / (rank + 1))
            for rank in range(k)
        ]


class StubServer:
    """An HTTP server that answers with what ``answer(path, body)`` returns: status and JSON.

    A reply of type ``bytes`` is sent as it is; one that is callable gets the handler itself.
    """

    def __init__(self, answer: Answer, port: int = 0) -> None:
        self.requests: list[tuple[str, Any]] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.loads(data) if data else None
                stub.requests.append((self.path, body))
                status, reply = answer(self.path, body)
                if callable(reply):
                    self.close_connection = True
                    reply(self)
                    return
                content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                self.do_POST()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def __enter__(self) -> StubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def post(
    url: str, body: Any, headers: dict[str, str] | None = None, method: str = "POST"
) -> tuple[int, Any]:
    """Send JSON (or bytes as they are) the plain way; return the status and the JSON answered."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        url, data, {"Content-Type": "application/json", **(headers or {})}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
