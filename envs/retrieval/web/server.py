"""The retrieval server: an index over HTTP in every dialect of the field; see docs/serving.md.

FastAPI, uvicorn and prometheus-client come with the extra ``serve`` and are imported when a server
starts, not before.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from research_rl.envs.retrieval.web.config import ServerConfig
from research_rl.envs.types import Retriever
from research_rl.envs.web import (
    SERVER_KEY_VARIABLE,
    ServerThread,
    check_installed,
    listen,
    make_server,
    server_key,
    warn_if_open,
)

if TYPE_CHECKING:
    import uvicorn


def serve_search(
    retriever: Retriever,
    host: str = "127.0.0.1",
    port: int = 8000,
    config: ServerConfig | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; requests in flight are answered before it returns.

    Raises:
        ImportError: the extra ``serve`` is not installed.
        OSError: the address cannot be listened on.
    """
    config = config or ServerConfig()
    server = _make_server(retriever, config, "info")
    warn_if_open(host, config.api_key)
    server.run(sockets=[listen(host, port)])


class BackgroundServer(ServerThread):
    """A server in a thread of this process, for tests, notebooks and benchmarks.

    >>> with BackgroundServer(retriever) as server:  # doctest: +SKIP
    ...     RemoteRetriever(server.url).search(["who wrote Emma"], k=5)

    Args:
        retriever: what answers.
        config: limits and habits.
        port: 0 takes a free one.
    """

    def __init__(
        self, retriever: Retriever, config: ServerConfig | None = None, port: int = 0
    ) -> None:
        server = _make_server(retriever, config or ServerConfig(), "warning")
        super().__init__(server, listen("127.0.0.1", port))


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``research index serve`` to ``parser``."""
    parser.add_argument("folder", type=Path, help="folder that `research index build` made")
    parser.add_argument("--corpus", type=Path, help="where the corpus lies now, if it has moved")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port (%(default)s)")
    for option in fields(ServerConfig):
        if option.name == "api_key":
            continue
        parser.add_argument(
            "--" + option.name.replace("_", "-"),
            type=type(option.default),
            default=option.default,
            help=f"{_explanation(option.name)} (%(default)s)",
        )
    parser.epilog = f"Clients must send a key if the variable {SERVER_KEY_VARIABLE} holds one."


def run_serve(args: argparse.Namespace) -> None:
    """Serve the index that ``args`` of ``add_serve_arguments`` name."""
    from research_rl.envs.retrieval.index import load_retriever

    check_installed("a retrieval server")
    names = [option.name for option in fields(ServerConfig) if option.name != "api_key"]
    values = {name: getattr(args, name) for name in names}
    config = ServerConfig(**values, api_key=server_key())
    serve_search(load_retriever(args.folder, args.corpus), args.host, args.port, config)


def _make_server(retriever: Retriever, config: ServerConfig, log_level: str) -> uvicorn.Server:
    check_installed("a retrieval server")
    from research_rl.envs.retrieval.web.app import create_search_app

    app = create_search_app(retriever, config)
    return make_server(app, log_level, grace=math.ceil(config.timeout))


def _explanation(name: str) -> str:
    """Return what ``ServerConfig``'s docstring says of an argument."""
    lines = (line.strip() for line in (ServerConfig.__doc__ or "").splitlines())
    return next((line.split(": ", 1)[1] for line in lines if line.startswith(f"{name}: ")), "")
