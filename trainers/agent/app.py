"""The server of ``research ask --web`` and ``research serve-agent``; see docs/ask.md.

FastAPI and uvicorn come with the extra ``serve``; this module imports them at once, so it is
imported where a server starts and nowhere else.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from research_rl.envs.system import scalar_text
from research_rl.envs.web import (
    BodyBudget,
    Count,
    Gate,
    Refused,
    ServerCounters,
    ServerThread,
    answered,
    check_host,
    check_json_type,
    check_key,
    json_body,
    listen,
    make_app,
    make_server,
    refusal,
    still_there,
)
from research_rl.trainers.agent.chat import ChatReplies, chat_request, question_in
from research_rl.trainers.agent.events import Event, answer_told
from research_rl.trainers.agent.page import page_policy
from research_rl.trainers.agent.question_queue import Inquiry, QuestionQueue
from research_rl.trainers.agent.streams import Streamed, Telling

log = logging.getLogger(__name__)
MAX_CHAT_BYTES = 2**20
"""Of a body: a question with the chat before it."""
_BODY_SECONDS = 30.0
_GRACE = 60
"""Seconds that answers under way have when the server is told to stop."""
_OPEN = ("/", "/health")  # hold nothing of anybody


@dataclass(frozen=True)
class AgentSettings:
    """What the server of an agent is told.

    Args:
        name: under which the agent is asked for.
        api_key: what clients must send; None lets all in.
        timeout: seconds in which an answer must be there, counted from the request.
        page: the page that is shown at ``/``; None shows none.
    """

    name: str = "research"
    api_key: str | None = None
    timeout: float = 600.0
    page: str | None = None


def create_agent_app(queue: QuestionQueue, settings: AgentSettings | None = None) -> FastAPI:
    """Return the application that answers from ``queue``, which it starts and closes."""
    routes = _Routes(queue, settings or AgentSettings())
    mcp = _mcp_route(queue, routes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        queue.start()
        async with nullcontext() if mcp is None else mcp.running():
            yield
        await asyncio.to_thread(queue.close, finish=False)

    app = make_app("research-rl agent", lifespan)
    app.add_api_route("/", routes.show, methods=["GET"])
    app.add_api_route("/ask", routes.ask, methods=["POST"])
    app.add_api_route("/v1/chat/completions", routes.complete, methods=["POST"])
    app.add_api_route("/v1/models", routes.models, methods=["GET"])
    routes.counters.add_to(app)
    if mcp is None:
        app.add_api_route("/mcp", routes.no_mcp, methods=["GET", "POST"])
    else:
        app.router.routes.append(Route("/mcp", mcp))
    app.add_exception_handler(404, _no_route)
    app.add_exception_handler(405, _no_route)
    app.add_middleware(Gate, let_in=routes.let_in, refused=_refused)
    return app


def _mcp_route(queue: QuestionQueue, routes: _Routes) -> Any:
    """What answers MCP; None where its package is missing."""
    if importlib.util.find_spec("mcp") is None:
        return None
    from research_rl.trainers.agent.mcp_tool import McpRoute

    return McpRoute(queue, routes.settings.timeout, routes.read)


class _Routes:
    """What each route answers."""

    def __init__(self, queue: QuestionQueue, settings: AgentSettings) -> None:
        self._queue, self.settings = queue, settings
        self._bodies = BodyBudget()
        self._answered = 0
        self.counters = ServerCounters(self._counts)

    def let_in(self, request: Request) -> None:
        """Refuse those without the key, and pages of other servers.

        Raises:
            Refused: with status 401 or 403.
        """
        if request.url.path not in _OPEN:
            check_key(request, self.settings.api_key)
        check_host(request, self.settings.api_key)

    async def show(self) -> Response:
        """Show the page."""
        if self.settings.page is None:
            return _refused(Refused("there is no page here; start research ask --web", 404))
        policy = page_policy(self.settings.page)
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(self.settings.page, headers=headers)

    async def ask(self, request: Request) -> Response:
        """Answer a question in lines of JSON, one an event."""
        try:
            question = question_in(await self.read(request))
            await still_there(request)
            telling = Telling(self._queue, Inquiry(question), "question")
        except Refused as error:
            return _refused(error)

        return Streamed(self._lines(telling), telling.drop, "application/x-ndjson")

    async def complete(self, request: Request) -> Response:
        """Answer a chat."""
        try:
            body = await self.read(request)
            chat = chat_request(body, self.settings.name, self._queue.asker.params)
            field = f"messages[{chat.unread}].content"
            await still_there(request)
            telling = Telling(self._queue, chat.inquiry, field)
            replies = ChatReplies(chat, telling.notes)
            if not chat.stream:
                return await self._whole(request, telling, replies)
        except Refused as error:
            return _refused(error)
        return Streamed(self._chunks(telling, replies), telling.drop, "text/event-stream")

    async def models(self) -> Response:
        """Name what is served."""
        row = {"id": self.settings.name, "object": "model", "owned_by": "research-rl"}
        return JSONResponse(
            {"object": "list", "data": [row | {"created": int(self.counters.started)}]}
        )

    async def no_mcp(self, request: Request) -> Response:
        """Say that the package is missing."""
        return _refused(Refused("MCP needs the package mcp; run: pip install -e '.[agent]'", 501))

    def _counts(self) -> tuple[Count, ...]:
        runs, waiting = self._queue.runs, self._queue.waiting
        return (
            Count("research_agent_answers", "Questions that were answered.", self._answered),
            Count("research_agent_runs", "Runs, of one question or several.", runs),
            Count("research_agent_waiting", "Questions that wait.", waiting, falls=True),
        )

    async def read(self, request: Request) -> Any:
        """The JSON value that a request brings.

        Raises:
            Refused: its body is none, or too large, or too slow.
        """
        check_json_type(request)
        return await json_body(request, MAX_CHAT_BYTES, _BODY_SECONDS, self._bodies)

    async def _whole(self, request: Request, telling: Telling, replies: ChatReplies) -> Response:
        try:
            prediction = await answered(request, None, telling.answer(self.settings.timeout))
        finally:
            telling.drop()
        self._answered += 1
        return JSONResponse(replies.whole(prediction))

    async def _lines(self, telling: Telling) -> AsyncIterator[bytes]:
        """The episode as lines of JSON."""
        try:
            async for event in telling.events(self.settings.timeout):
                yield _line(event)
            told = answer_told(telling.result(), telling.notes)
        except Refused as error:
            message = scalar_text(str(error))
            yield _line({"event": "error", "message": message, "status": error.status})
            return
        self._answered += 1
        yield _line({"event": "answer", **told})

    async def _chunks(self, telling: Telling, replies: ChatReplies) -> AsyncIterator[bytes]:
        """The episode as chunks of a chat completion."""
        yield _sse(replies.begin())
        try:
            async for event in telling.events(self.settings.timeout):
                yield _sse(replies.event(event))
            prediction = telling.result()
        except Refused as error:
            yield _sse(_error(error))
            return
        self._answered += 1
        for chunk in replies.end(prediction):
            yield _sse(chunk)
        yield b"data: [DONE]\n\n"


def _line(event: Event) -> bytes:
    return json.dumps(event).encode("ascii") + b"\n"


def _sse(chunk: Event) -> bytes:
    return b"data: " + json.dumps(chunk).encode("ascii") + b"\n\n"


def _error(error: Refused) -> dict[str, Any]:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    message = scalar_text(str(error))
    return {"error": {"message": message, "type": kind, "code": error.status, "param": None}}


async def _no_route(request: Request, error: Exception) -> Response:
    """Answer a path or a method that there is none of in the form of every other refusal."""
    asked = f"{request.method} {request.url.path}"
    known = "POST /ask, POST /v1/chat/completions, GET /v1/models, /mcp, GET /health, GET /metrics"
    return _refused(
        Refused(f"no route {asked}; known: {known}", getattr(error, "status_code", 404))
    )


def _refused(error: Refused) -> Response:
    return refusal(error, _error(error))


def serve_agent(
    queue: QuestionQueue, bound: socket.socket, settings: AgentSettings | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; answers under way are given before it returns.

    Args:
        queue: answers; started and closed with the server.
        bound: where it listens.
        settings: of the server.
    """
    _server(queue, settings, "info").run(sockets=[bound])


def _server(queue: QuestionQueue, settings: AgentSettings | None, level: str) -> uvicorn.Server:
    return make_server(create_agent_app(queue, settings), level, grace=_GRACE, keep_alive=60)


class BackgroundAgentServer(ServerThread):
    """The server of an agent in a thread of this process, for tests and notebooks.

    Args:
        queue: what answers; started and closed with the server.
        settings: of the server.
        port: 0 takes a free one.
    """

    def __init__(
        self, queue: QuestionQueue, settings: AgentSettings | None = None, port: int = 0
    ) -> None:
        self.queue = queue
        bound = listen("127.0.0.1", port)
        super().__init__(_server(queue, settings, "warning"), bound)
