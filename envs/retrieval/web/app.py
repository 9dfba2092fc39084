"""The HTTP application: every dialect on one port, one shared index behind it.

Rule: a reply with status 200 holds passages of a search that went well. Everything else is an error
status with ``{"detail": message}``: 400 no JSON or an empty query, 401 key, 404 route, 408 slow
body, 413 size, 422 shape or limit, 429 overload, 503 retriever, 504 time.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from research_rl.envs.retrieval.web.batching import Coalescer, OverloadedError
from research_rl.envs.retrieval.web.config import ServerConfig
from research_rl.envs.retrieval.web.dialects import (
    DIALECTS,
    Dialect,
    SearchRequest,
    retrieve_dialect,
)
from research_rl.envs.retrieval.web.json_checks import Json, WireError, dump_json, parse_json
from research_rl.envs.retrieval.web.metrics import ServerMetrics
from research_rl.envs.types import Passage, Retriever, RetrieverUnavailable

log = logging.getLogger(__name__)

_T = TypeVar("_T")

ROUTES = tuple(dict.fromkeys(dialect.route for dialect in DIALECTS.values()))


class RefusedError(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def create_search_app(retriever: Retriever, config: ServerConfig) -> FastAPI:
    """Return the application that answers from ``retriever``."""
    service = Service(retriever, config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.coalescer.close()

    app = FastAPI(
        title="research-rl retrieval server",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    for route in ROUTES:
        app.add_api_route(route, service.answer, methods=["POST"])
        app.add_api_route("/{dialect}" + route, service.answer, methods=["POST"])
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/metrics", service.show_metrics, methods=["GET"])
    app.add_exception_handler(404, unknown_route)
    return app


class Service:
    """Answers the requests of one application."""

    def __init__(self, retriever: Retriever, config: ServerConfig) -> None:
        self.config = config
        self.metrics = ServerMetrics()
        self.coalescer = Coalescer(
            retriever.search,
            max_batch=config.max_batch,
            max_wait=config.max_wait_ms / 1000,
            max_pending=config.max_pending,
            observe=self.metrics.searched,
        )
        self.metrics.watch(self.coalescer)

    async def answer(self, request: Request) -> Response:
        """Answer a search in whichever dialect it is asked."""
        started = time.perf_counter()
        name = request.url.path
        status = 500
        try:
            self._check_key(request)
            body = parse_body(await self._read(request))
            dialect = self._dialect(request, body)
            name = dialect.name
            response = json_response(await self._search(dialect, body))
            status = 200
            return response
        except RefusedError as error:
            status = error.status
            return refusal(error)
        finally:
            known = name if name in DIALECTS else "unknown"
            self.metrics.answered(known, status, time.perf_counter() - started)

    async def health(self) -> Response:
        """Answer in ReSearch's form; after a failed search, only once a new one has gone well."""
        if self.coalescer.failure:
            try:
                await within(self.config.timeout, 504, self.coalescer.submit(("health",), 1))
            except Exception as error:
                log.warning("the retriever still fails: %s", error)
        healthy = not self.coalescer.failure
        available = int(healthy and not self.coalescer.searching)
        report: dict[str, Json] = {
            "status": "healthy" if healthy else "unhealthy",
            "retrievers": {"total": 1, "available": available},
        }
        if not healthy:
            report["detail"] = self.coalescer.failure
        return json_response(report, 200 if healthy else 503)

    async def show_metrics(self, request: Request) -> Response:
        """Answer with the counters in Prometheus's text format."""
        try:
            self._check_key(request)
        except RefusedError as error:
            return refusal(error)
        return Response(self.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def _check_key(self, request: Request) -> None:
        if self.config.api_key is None:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.config.api_key}".encode()):
            raise RefusedError(401, "send the server's key as 'Authorization: Bearer KEY'")

    async def _read(self, request: Request) -> bytes:
        """Return the body; stop reading where it grows too large."""
        limit = self.config.max_body
        too_large = RefusedError(413, f"a body must have at most {limit} bytes")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise too_large

        async def read() -> bytes:
            parts = bytearray()
            async for part in request.stream():
                parts += part
                if len(parts) > limit:
                    raise too_large
            return bytes(parts)

        return await within(self.config.timeout, 408, read())

    def _dialect(self, request: Request, body: Json) -> Dialect:
        """Return the dialect: named in the path, fixed by the route, or told by the body."""
        route = "/" + request.url.path.rsplit("/", 1)[-1]
        named = request.path_params.get("dialect")
        if named is not None:
            dialect = DIALECTS.get(named)
            if dialect is None or dialect.route != route:
                raise RefusedError(404, f"{named!r} has no route {route}; known: {known_routes()}")
            return dialect
        if route == "/retrieve":
            return checked(lambda: retrieve_dialect(body, self.config.ambiguous_dialect))
        return next(dialect for dialect in DIALECTS.values() if dialect.route == route)

    async def _search(self, dialect: Dialect, body: Json) -> bytes:
        request = checked(lambda: dialect.decode_request(body))
        self._check_limits(request)
        k = request.top_k or self.config.default_top_k
        try:
            results = await within(
                self.config.timeout, 504, self.coalescer.submit(request.queries, k)
            )
            reply = dialect.encode_response(request, [checked_row(row, k) for row in results])
            return dump_json(reply)
        except OverloadedError as error:
            raise RefusedError(429, f"{error}; ask again later") from error
        except RefusedError:
            raise
        except Exception as error:
            if not isinstance(error, RetrieverUnavailable):
                log.exception("the retriever failed")
            detail = f"the retriever failed: {type(error).__name__}: {error}"
            raise RefusedError(503, detail) from error

    def _check_limits(self, request: SearchRequest) -> None:
        config = self.config
        if len(request.queries) > config.max_queries:
            raise RefusedError(
                422,
                f"a request must hold at most {config.max_queries} queries, "
                f"got {len(request.queries)}; send them in parts",
            )
        if request.top_k is not None and request.top_k > config.max_top_k:
            raise RefusedError(
                422, f"at most {config.max_top_k} passages may be wanted, got {request.top_k}"
            )
        for position, query in enumerate(request.queries):
            if len(query) > config.max_query_chars:
                raise RefusedError(
                    422,
                    f"query {position} must have at most {config.max_query_chars} "
                    f"characters, got {len(query)}",
                )
            if config.empty_query == "refuse" and not query.strip():
                raise RefusedError(400, f"query {position} must not be empty")


def parse_body(data: bytes) -> Json:
    """Return the JSON of a request's body."""
    try:
        return parse_json(data)
    except WireError as error:
        raise RefusedError(400, str(error)) from error


def checked(convert: Callable[[], _T]) -> _T:
    """Return what ``convert`` returns; a wrong shape is refused with 422."""
    try:
        return convert()
    except WireError as error:
        raise RefusedError(422, str(error)) from error


def checked_row(passages: Sequence[Passage], k: int) -> list[Passage]:
    """Return one query's passages after a check that they can go on the wire."""
    if len(passages) > k:
        raise WireError(f"the retriever must return at most {k} passages, got {len(passages)}")
    for passage in passages:
        if not isinstance(passage.id, str) or not isinstance(passage.contents, str):
            raise WireError(f"a passage must have strings as id and contents, got {passage!r}")
    return list(passages)


async def within(seconds: float, status: int, work: Awaitable[_T]) -> _T:
    """Return what ``work`` returns; refuse with ``status`` if it takes longer than ``seconds``."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        task.cancel()
        raise RefusedError(status, f"no answer within {seconds:g} s")
    return task.result()


def json_response(value: Json, status: int = 200) -> Response:
    """Return a JSON response of a value, or of bytes that are JSON already."""
    content = value if isinstance(value, bytes) else dump_json(value)
    return Response(content, status, media_type="application/json")


def refusal(error: RefusedError) -> Response:
    """Return the response of a refused request."""
    response = json_response({"detail": error.detail}, error.status)
    if error.status in (429, 503):
        response.headers["Retry-After"] = "1"
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):  # part of the body is unread
        response.headers["Connection"] = "close"
    return response


async def unknown_route(request: Request, _: Exception) -> Response:
    """Answer 404 with the routes there are."""
    path = request.url.path
    return json_response({"detail": f"no route {path}; known: {known_routes()}"}, 404)


def known_routes() -> str:
    """Return the routes as a list for a message."""
    named = (f"/{dialect.name}{dialect.route}" for dialect in DIALECTS.values())
    return ", ".join((*ROUTES, *named, "/health", "/metrics"))
