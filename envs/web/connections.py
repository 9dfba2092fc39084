"""Connections of a server that end by themselves: a client that stalls cannot hold one for ever.

uvicorn ends a connection that is idle after an answer. It waits without end for one that was
opened and says nothing, that stops in the middle of its headers, or that does not read its answer,
also where it has ended the connection but for that answer.
This module imports uvicorn, so it is imported where a server starts.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30.0
"""In which the headers of a request must have arrived, counted from the connection's beginning."""
READ_SECONDS = 60.0
"""In which a client must take some of its answer."""


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 whose clients must go on within HEAD_SECONDS and READ_SECONDS."""

    _head: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_SECONDS, self._end)

    def data_received(self, data: bytes) -> None:
        """Take data; the wait is over when all headers are there."""
        super().data_received(data)
        begun = self.cycle is not None and not self.cycle.response_complete
        if begun:
            self._stop_head()
            if not self.flow.write_paused:  # who asks on has read the answer before
                self._stop_stalled()
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._end)

    def on_response_complete(self) -> None:
        """Let uvicorn's own wait for the next request begin, and one for the rest of the answer."""
        self._stop_head()
        self._await_reader()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to wait for a client that takes its answer slowly."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """Go on: the client took some."""
        self._stop_stalled()
        if self.cycle is not None and self.cycle.response_complete:
            self._await_reader()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the waits."""
        self._stop_head()
        self._stop_stalled()
        super().connection_lost(exc)

    def _await_reader(self) -> None:
        if self._stalled is None and self.transport.get_write_buffer_size():
            self._stalled = self.loop.call_later(READ_SECONDS, self._cut)

    def _cut(self) -> None:
        self._stalled = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _end(self) -> None:
        self._head = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _stop_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
