"""What every HTTP server of this package needs: an address, and a thread to run in."""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import uvicorn


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
