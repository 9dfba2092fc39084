"""The HTTP application: every dialect on one port, one shared index behind it.

Rule: a reply with status 200 holds passages of a search that went well. Everything else is an error
status with ``{"detail": message}``: 400 no JSON or an empty query, 401 key, 404 route, 408 slow
body, 413 size, 415 no JSON by its type, 422 shape or limit, 429 overload, 503 retriever, 504 time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from fastapi import FastAPI, Request, Response

from research_rl.envs.retrieval.web.batching import Coalescer, OverloadedError
from research_rl.envs.retrieval.web.config import ServerConfig
from research_rl.envs.retrieval.web.dialects import (
    DIALECTS,
    Dialect,
    SearchRequest,
    retrieve_dialect,
)
from research_rl.envs.retrieval.web.json_checks import Json, WireError, dump_json
from research_rl.envs.retrieval.web.metrics import ServerMetrics
from research_rl.envs.types import Passage, Retriever, RetrieverUnavailable, search_checked
from research_rl.envs.web import (
    BodyBudget,
    Refused,
    answered,
    check_host,
    check_json_type,
    check_key,
    json_body,
    make_app,
    metrics_reply,
    refusal,
    still_there,
    within,
)

log = logging.getLogger(__name__)

_T = TypeVar("_T")

ROUTES = tuple(dict.fromkeys(dialect.route for dialect in DIALECTS.values()))


def create_search_app(retriever: Retriever, config: ServerConfig) -> FastAPI:
    """Return the application that answers from ``retriever``."""
    service = Service(retriever, config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.coalescer.close()

    app = make_app("research-rl retrieval server", lifespan)
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
        self._bodies = BodyBudget(max(8 * config.max_body, 2**26))
        self._has_cut = False
        self.metrics = ServerMetrics()
        self.coalescer = Coalescer(
            partial(search_checked, retriever),
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
            check_key(request, self.config.api_key)
            check_host(request, self.config.api_key)
            check_json_type(request)
            config = self.config
            body = await json_body(request, config.max_body, config.timeout, self._bodies)
            await still_there(request)
            dialect = self._dialect(request, body)
            name = dialect.name
            response = json_response(await self._search(request, dialect, body))
            status = 200
            return response
        except Refused as error:
            status = error.status
            return refused(error)
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
            check_key(request, self.config.api_key)
            check_host(request, self.config.api_key)
        except Refused as error:
            return refused(error)
        return metrics_reply(self.metrics.registry)

    def _dialect(self, request: Request, body: Json) -> Dialect:
        """Return the dialect: named in the path, fixed by the route, or told by the body."""
        route = "/" + request.url.path.rsplit("/", 1)[-1]
        named = request.path_params.get("dialect")
        if named is not None:
            dialect = DIALECTS.get(named)
            if dialect is None or dialect.route != route:
                raise Refused(f"{named!r} has no route {route}; known: {known_routes()}", 404)
            return dialect
        if route == "/retrieve":
            return checked(lambda: retrieve_dialect(body, self.config.ambiguous_dialect))
        return next(dialect for dialect in DIALECTS.values() if dialect.route == route)

    async def _search(self, client: Request, dialect: Dialect, body: Json) -> bytes:
        request = checked(lambda: dialect.decode_request(body))
        self._check_limits(request)
        k = request.top_k or self.config.default_top_k
        try:
            search = self.coalescer.submit(self._cut(request.queries), k)
            results = await answered(client, self.config.timeout, search)
            reply = dialect.encode_response(request, [checked_row(row, k) for row in results])
            return dump_json(reply)
        except OverloadedError as error:
            raise Refused(f"{error}; ask again later", 429) from error
        except Refused:
            raise
        except Exception as error:
            if not isinstance(error, RetrieverUnavailable):
                log.exception("the retriever failed")
            detail = f"the retriever failed: {type(error).__name__}: {error}"
            raise Refused(detail, 503) from error

    def _cut(self, queries: tuple[str, ...]) -> tuple[str, ...]:
        """Return queries of at most so many characters; an encoder cuts far shorter ones too."""
        most = self.config.max_query_chars
        longest = max(map(len, queries))
        if longest <= most:
            return queries
        if not self._has_cut:
            self._has_cut = True
            log.warning(
                "a query has %d characters: longer ones than max_query_chars %d are cut to that "
                "(said once)",
                longest,
                most,
            )
        return tuple(query[:most] for query in queries)

    def _check_limits(self, request: SearchRequest) -> None:
        config = self.config
        if len(request.queries) > config.max_queries:
            raise Refused(
                f"a request must hold at most {config.max_queries} queries, "
                f"got {len(request.queries)}; send them in parts",
                422,
            )
        if request.top_k is not None and request.top_k > config.max_top_k:
            raise Refused(
                f"at most {config.max_top_k} passages may be wanted, got {request.top_k}", 422
            )
        for position, query in enumerate(request.queries):
            if config.empty_query == "refuse" and not query.strip():
                raise Refused(
                    f"query {position} must not be empty; a server with --empty-query search "
                    "searches for it"
                )


def checked(convert: Callable[[], _T]) -> _T:
    """Return what ``convert`` returns; a wrong shape is refused with 422."""
    try:
        return convert()
    except WireError as error:
        raise Refused(str(error), 422) from error


def checked_row(passages: Sequence[Passage], k: int) -> list[Passage]:
    """Return one query's passages after a check that they can go on the wire."""
    if len(passages) > k:
        raise WireError(f"the retriever must return at most {k} passages, got {len(passages)}")
    for passage in passages:
        if not isinstance(passage.id, str) or not isinstance(passage.contents, str):
            raise WireError(f"a passage must have strings as id and contents, got {passage!r}")
    return list(passages)


def json_response(value: Json, status: int = 200) -> Response:
    """Return a JSON response of a value, or of bytes that are JSON already."""
    content = value if isinstance(value, bytes) else dump_json(value)
    return Response(content, status, media_type="application/json")


def refused(error: Refused) -> Response:
    """Return the response of a refused request."""
    return refusal(error, {"detail": str(error)})


async def unknown_route(request: Request, _: Exception) -> Response:
    """Answer 404 with the routes there are."""
    path = request.url.path
    return json_response({"detail": f"no route {path}; known: {known_routes()}"}, 404)


def known_routes() -> str:
    """Return the routes as a list for a message."""
    named = (f"/{dialect.name}{dialect.route}" for dialect in DIALECTS.values())
    return ", ".join((*ROUTES, *named, "/health", "/metrics"))
