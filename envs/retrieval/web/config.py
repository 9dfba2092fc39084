"""The settings of a retrieval server."""

from __future__ import annotations

from dataclasses import dataclass, field

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
        max_query_chars: characters of one query; what a longer one has beyond them is not read.
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


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
