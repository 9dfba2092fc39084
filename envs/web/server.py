"""HTTP as a server: an address, the key, bodies, refusals, and a thread to run in.

FastAPI, uvicorn and prometheus-client come with the extra ``serve`` and are imported when a server
starts, not before: clients of this room do without them.
"""

from __future__ import annotations

import asyncio
import hmac
import importlib.util
import json
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from research_rl.envs.web.json_values import ValueCount
from research_rl.envs.web.keys import SERVER_KEY_VARIABLE

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI, Request, Response

MAX_VALUES = 2**16
"""In a body; it is parsed in one go, and meanwhile no one else is answered."""
log = logging.getLogger(__name__)
_T = TypeVar("_T")
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Refused(Exception):
    """A request that is answered with an error status.

    Args:
        message: says what must hold.
        status: of HTTP.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def check_installed(what: str) -> None:
    """Refuse to begin where a package of the extra ``serve`` is missing.

    Raises:
        ImportError: it is; says what needs it.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{what} needs {', '.join(missing)}; run: pip install -e '.[serve]'")


def warn_if_open(host: str, key: str | None) -> None:
    """Say so where whoever reaches the machine may use the server."""
    if host not in _LOOPBACK and key is None:
        log.warning("%s can be reached from other machines and asks for no key", host)


def make_app(
    title: str, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]
) -> FastAPI:
    """Return an application without routes, those of FastAPI's own pages left out."""
    from fastapi import FastAPI

    return FastAPI(title=title, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)


def make_server(app: FastAPI, log_level: str, grace: int, keep_alive: int = 5) -> uvicorn.Server:
    """Return what runs an application; clients that stall are cut off, see connections.py.

    Args:
        app: the application.
        log_level: of uvicorn.
        grace: seconds that requests in flight have when the server is told to stop.
        keep_alive: seconds that a connection may be idle.
    """
    import uvicorn

    from research_rl.envs.web.connections import BoundedProtocol

    settings = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",  # its handshake would pass by the gate
        log_level=log_level,
        access_log=False,
        timeout_graceful_shutdown=grace,
        timeout_keep_alive=keep_alive,
    )
    return uvicorn.Server(settings)


def check_key(request: Request, key: str | None) -> None:
    """Refuse a request without the server's key; None lets all in.

    Raises:
        Refused: with status 401.
    """
    given = request.headers.get("authorization", "").encode()
    if key is not None and not hmac.compare_digest(given, f"Bearer {key}".encode()):
        raise Refused("send the server's key as 'Authorization: Bearer KEY'", 401)


def check_host(request: Request, key: str | None) -> None:
    """Refuse a request that reached this machine's own address under another machine's name.

    A web page can have its own name lead to 127.0.0.1, and then ask a server there as if it were
    its own. Where clients need a key the page has none, and any name is taken.

    Raises:
        Refused: with status 403.
    """
    reached = (request.scope.get("server") or ("",))[0]
    host = request.headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if key is None and reached in _LOOPBACK and name not in _LOOPBACK:
        raise Refused(
            f"Host must be one of {', '.join(_LOOPBACK)} on a server without a key, got {host!r}; "
            f"set {SERVER_KEY_VARIABLE} to be asked under another name",
            403,
        )


def check_json_type(request: Request) -> None:
    """Refuse a body that does not say that it is JSON; a web page may not say so unasked.

    Raises:
        Refused: with status 415.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Refused(f"Content-Type must be application/json, got {kind[:80]!r}", 415)


class BodyBudget:
    """Bytes of bodies that a server holds at once, of all its clients together.

    What is free of each body keeps a question answered beside large bodies that never end.

    Args:
        most: what goes beyond it is refused with 429.
        free: bytes of each body that are not counted.
    """

    def __init__(self, most: int = 64 * 2**20, free: int = 2**16) -> None:
        self.most, self.free, self.held = most, free, 0

    def taking(self) -> BodyTaken:
        """Begin to take a body; what it holds is given back with its ``end``."""
        return BodyTaken(self)


class BodyTaken:
    """What has arrived of one body.

    Args:
        budget: of all bodies.
    """

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.size = self._counted = 0

    def add(self, size: int) -> None:
        """Count bytes that have arrived.

        Raises:
            Refused: all bodies together are too large.
        """
        budget = self._budget
        self.size += size
        counted = max(0, self.size - budget.free)
        budget.held += counted - self._counted
        self._counted = counted
        if counted and budget.held > budget.most:
            raise Refused(
                f"bodies of all clients may have {budget.most} bytes at once; ask again later", 429
            )

    def end(self) -> None:
        """Give back what it holds."""
        self._budget.held -= self._counted
        self._counted = 0


async def json_body(
    request: Request,
    max_bytes: int | None = None,
    seconds: float | None = None,
    budget: BodyBudget | None = None,
    max_values: int | None = None,
) -> Any:
    """Return the JSON value that a request brings; reading stops where it grows too large.

    Args:
        request: whose body is read.
        max_bytes: of the body; None is no limit.
        seconds: in which it must arrive; None is no limit.
        budget: of all bodies of the server; None is no limit.
        max_values: of the body; None is MAX_VALUES.

    Raises:
        Refused: with status 400 it is no JSON, with 408 too slow, with 413 too large, with 429
            beside too many others.
    """
    from starlette.requests import ClientDisconnect

    taken = (BodyBudget(2**62) if budget is None else budget).taking()
    most = MAX_VALUES if max_values is None else max_values
    values = ValueCount()
    too_large = Refused(f"a body must have at most {max_bytes} bytes", 413)
    length = request.headers.get("content-length", "")
    if max_bytes is not None and length.isdigit() and int(length) > max_bytes:
        raise too_large

    async def read() -> bytes:
        parts = bytearray()
        async for part in request.stream():
            if max_bytes is not None and taken.size + len(part) > max_bytes:
                raise too_large
            taken.add(len(part))
            if values.add(part) > most:
                raise Refused(f"a body must hold at most {most} values, got more", 413)
            parts += part
        return bytes(parts)

    try:
        data = await within(seconds, 408, read())
    except ClientDisconnect as error:
        raise Refused("the client hung up", 499) from error
    finally:
        taken.end()
    try:
        # as text: of bytes it would take UTF-16 too, whose values were not counted
        return json.loads(data.decode("utf-8-sig", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        start = data[:60].decode("utf-8", "replace")
        raise Refused(f"the body must be JSON, got {start!r} ({error})") from error


async def answered(request: Request, seconds: float | None, work: Awaitable[_T]) -> _T:
    """Return what ``work`` returns, as long as the client waits for it.

    The body must have been read. Where the client hangs up, ``work`` is cancelled at once.

    Raises:
        Refused: with status 499 the client hung up, with 504 it takes longer than ``seconds``.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_hung_up(request))
    try:
        done, _ = await asyncio.wait(
            {task, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        left.cancel()
        if not task.done():
            task.cancel()
    if task in done:
        return task.result()
    if left in done:
        raise Refused("the client hung up", 499)
    raise Refused(f"no answer within {seconds:g} s", 504)


async def still_there(request: Request) -> None:
    """Refuse a request whose client is gone already; its body must have been read.

    Raises:
        Refused: with status 499.
    """
    left = asyncio.ensure_future(_hung_up(request))
    for _ in range(2):  # so that the end of the connection is noticed, if it is there
        await asyncio.sleep(0)
    if left.done():
        raise Refused("the client hung up", 499)
    left.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        """A rest of the body."""


async def within(seconds: float | None, status: int, work: Awaitable[_T]) -> _T:
    """Return what ``work`` returns.

    Raises:
        Refused: with ``status``, if it takes longer than ``seconds``.
    """
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        task.cancel()
        raise Refused(f"no answer within {seconds:g} s", status)
    return task.result()


def refusal(error: Refused, body: Any) -> Response:
    """Return the answer to a refused request.

    Args:
        error: why.
        body: what the protocol says of it, ready for JSON.
    """
    from fastapi import Response

    headers = {}
    if error.status in (429, 503):
        headers["Retry-After"] = "1"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413, 429):  # part of the body is unread
        headers["Connection"] = "close"
    data = json.dumps(body).encode("ascii")
    return Response(data, error.status, headers, media_type="application/json")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound there; port 0 takes a free one.

    Raises:
        OSError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only where the protocol is spelled out
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise OSError(
            f"the server must be able to listen on {host} port {port}, got: {error}; stop what "
            "runs there, or name another --port"
        ) from error
    return bound


class ServerThread:
    """A server in a thread of this process, from the beginning of a block to its end.

    Args:
        server: what answers.
        bound: where, on 127.0.0.1; closed with the server.
    """

    def __init__(self, server: uvicorn.Server, bound: socket.socket) -> None:
        self._server, self._socket = server, bound
        self.port: int = bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError(f"the server at {self.url} did not start; see the log")
            time.sleep(0.005)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer what is under way, then end."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
