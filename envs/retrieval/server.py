"""Serves an index over HTTP in every dialect of the field; see docs/serving.md.

FastAPI, uvicorn and prometheus-client come with the extra ``serve`` and are imported when a server
starts, not before.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from research_rl.envs.serving import ServerThread, listen
from research_rl.envs.types import Retriever

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger(__name__)

KEY_VARIABLE = "RESEARCH_API_KEY"
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_POSITIVE = (
    "max_body",
    "max_queries",
    "max_query_chars",
    "max_top_k",
    "default_top_k",
    "timeout",
    "max_batch",
    "max_pending",
)


@dataclass(frozen=True)
class ServerConfig:
    """Limits and habits of a server.

    Args:
        max_body: bytes of a request's body.
        max_queries: queries in one request.
        max_query_chars: characters of one query.
        max_top_k: passages of one query.
        default_top_k: passages where the request leaves it open.
        timeout: seconds a body may take to arrive, and again a search to be answered.
        max_batch: queries in one search of the index.
        max_wait_ms: milliseconds a search waits for further requests, while several callers ask.
        max_pending: queries that may wait; further requests are answered 429.
        empty_query: ``refuse`` with 400, or ``search`` for it as the peers' own servers do.
        ambiguous_dialect: who is meant by ``{"query", "top_k"}``, ``zerosearch`` or ``rllm``.
        api_key: what clients must send as ``Authorization: Bearer KEY``; None lets all in.
    """

    max_body: int = 8 * 2**20
    max_queries: int = 4096
    max_query_chars: int = 65536
    max_top_k: int = 100
    default_top_k: int = 5
    timeout: float = 60.0
    max_batch: int = 256
    max_wait_ms: float = 2.0
    max_pending: int = 16384
    empty_query: str = "refuse"
    ambiguous_dialect: str = "zerosearch"
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.max_wait_ms < 0:
            raise ValueError(f"max_wait_ms must not be negative, got {self.max_wait_ms}")
        if self.default_top_k > self.max_top_k:
            raise ValueError(
                f"default_top_k must be at most max_top_k {self.max_top_k}, "
                f"got {self.default_top_k}"
            )
        _check_choice("empty_query", self.empty_query, ("refuse", "search"))
        _check_choice("ambiguous_dialect", self.ambiguous_dialect, ("zerosearch", "rllm"))
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip()):
            raise ValueError("api_key must be ASCII text that is not blank")


def serve(
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
    if host not in _LOOPBACK and config.api_key is None:
        log.warning("%s can be reached from other machines and asks for no key", host)
    listen(host, port).close()  # uvicorn would log the failure and end the process
    _make_server(retriever, config, host, port, log_level="info").run()


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
        bound = listen("127.0.0.1", port)
        taken: int = bound.getsockname()[1]
        server = _make_server(retriever, config or ServerConfig(), "127.0.0.1", taken, "warning")
        super().__init__(server, bound)


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
    parser.epilog = f"Clients must send a key if the variable {KEY_VARIABLE} holds one."


def run_serve(args: argparse.Namespace) -> None:
    """Serve the index that ``args`` of ``add_serve_arguments`` name."""
    from research_rl.envs.retrieval import load_retriever

    _check_installed()
    names = [option.name for option in fields(ServerConfig) if option.name != "api_key"]
    values = {name: getattr(args, name) for name in names}
    config = ServerConfig(**values, api_key=os.environ.get(KEY_VARIABLE) or None)
    serve(load_retriever(args.folder, args.corpus), args.host, args.port, config)


def _make_server(
    retriever: Retriever, config: ServerConfig, host: str, port: int, log_level: str
) -> uvicorn.Server:
    _check_installed()
    import uvicorn

    from research_rl.envs.retrieval.app import create_app

    settings = uvicorn.Config(
        create_app(retriever, config),
        host=host,
        port=port,
        log_level=log_level,
        access_log=False,
        timeout_graceful_shutdown=math.ceil(config.timeout),
    )
    return uvicorn.Server(settings)


def _check_installed() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"a retrieval server needs {', '.join(missing)}; run: pip install -e '.[serve]'"
        )


def _explanation(name: str) -> str:
    """Return what ``ServerConfig``'s docstring says of an argument."""
    lines = (line.strip() for line in (ServerConfig.__doc__ or "").splitlines())
    return next((line.split(": ", 1)[1] for line in lines if line.startswith(f"{name}: ")), "")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
