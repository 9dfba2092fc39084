"""A gate before all routes of a server: who may not ask is refused before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from research_rl.envs.web.server import Refused

if TYPE_CHECKING:
    from fastapi import Request, Response
    from starlette.types import ASGIApp, Receive, Scope, Send


class Gate:
    """Middleware in plain ASGI.

    Starlette's own kind starts tasks for each request, which many clients at once make others
    wait for.

    Args:
        app: what answers those who may ask.
        let_in: raises Refused for those who may not.
        refused: makes the answer to them.
    """

    def __init__(
        self,
        app: ASGIApp,
        let_in: Callable[[Request], None],
        refused: Callable[[Refused], Response],
    ) -> None:
        self._app, self._let_in, self._refused = app, let_in, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        from fastapi import Request

        if scope["type"] == "http":
            try:
                self._let_in(Request(scope))
            except Refused as error:
                await self._refused(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
