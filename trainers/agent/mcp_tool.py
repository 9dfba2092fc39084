"""The agent as a tool of the Model Context Protocol: ``research(question)``.

The package ``mcp`` comes with the extra ``agent``; this module imports it at once, so it is
imported where such a server starts and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypedDict

from fastapi import Request
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings

from research_rl.envs.web import Refused, refusal
from research_rl.trainers.agent.events import answer_told
from research_rl.trainers.agent.question_queue import Inquiry, QuestionQueue
from research_rl.trainers.agent.streams import Telling

_ABOUT = (
    "Answer a question by searching a collection of documents, several times if need be. Ask one "
    "whole question that stands by itself. Returns the answer ('' if there is none, with the "
    "reason in no_answer), the searches, the passages that were found, and notes: what to know "
    "of the question, such as words that the model cannot read."
)


class Researched(TypedDict):
    """What the tool returns; see ``answer_told``."""

    answer: str
    no_answer: str | None
    searches: list[dict[str, Any]]
    passages: list[dict[str, Any]]
    notes: list[str]


def mcp_server(queue: QuestionQueue, timeout: float) -> Any:
    """Return a server with the one tool.

    Args:
        queue: answers; started and closed by others.
        timeout: seconds that an answer may take.
    """

    async def research(question: str, context: Context) -> Researched:
        try:
            telling = Telling(queue, Inquiry(question), "question")
        except Refused as error:
            raise ToolError(str(error)) from error
        searches = 0
        try:
            async for event in telling.events(timeout):
                if event["event"] == "result":
                    searches += 1
                    about = ", ".join(one["query"] for one in event["searches"])
                    await context.report_progress(searches, None, f"searched: {about}")
            told = answer_told(telling.result(), telling.notes)
        except Refused as error:
            raise ToolError(str(error)) from error
        finally:
            telling.drop()
        return Researched(
            answer=told["answer"],
            no_answer=told["no_answer"],
            searches=told["searches"],
            passages=told["passages"],
            notes=told["notes"],
        )

    server = MCPServer("research", log_level="WARNING", subscriptions=False)
    server.add_tool(research, "research", description=_ABOUT, structured_output=True)
    return server


def speak_mcp(queue: QuestionQueue, timeout: float) -> None:
    """Serve over standard input and output until the client ends."""
    with queue:
        asyncio.run(mcp_server(queue, timeout).run_stdio_async())


class McpRoute:
    """The tool over HTTP (streamable, without sessions), as a part of another application.

    Args:
        queue: answers.
        timeout: seconds that an answer may take.
        read: reads the body of a request within bounds, or raises Refused.
    """

    def __init__(
        self,
        queue: QuestionQueue,
        timeout: float,
        read: Callable[[Request], Awaitable[Any]],
    ) -> None:
        server = mcp_server(queue, timeout)
        # the gate of the application has looked at the key and the name of the host
        open_gate = TransportSecuritySettings(enable_dns_rebinding_protection=False)
        server.streamable_http_app(stateless_http=True, transport_security=open_gate)
        self._manager, self._read = server.session_manager, read

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Inside, it answers."""
        async with self._manager.run():
            yield

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        try:
            if request.method != "POST":
                raise Refused(f"the method must be POST, got {request.method}", 405)
            body = json.dumps(await self._read(request)).encode("ascii")
        except Refused as error:
            problem = {"code": -32600, "message": str(error)}
            answer = refusal(error, {"jsonrpc": "2.0", "id": None, "error": problem})
            await answer(scope, receive, send)
            return
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return unread.pop() if unread else await receive()

        headers = [(n, v) for n, v in scope["headers"] if n != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode("ascii")))
        await self._manager.handle_request({**scope, "headers": headers}, again, send)
