"""Counters of a retrieval server, in Prometheus's text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from research_rl.envs.retrieval.web.batching import Coalescer

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServerMetrics:
    """The counters of one application, in a ``registry`` of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "research_requests",
            "Requests answered.",
            ("dialect", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "research_request_seconds",
            "Time from a request's arrival to its answer.",
            ("dialect",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "research_batch_queries",
            "Distinct queries in one search of the index.",
            buckets=_SIZES,
            registry=self.registry,
        )
        self._search = Histogram(
            "research_search_seconds",
            "Time of one search of the index.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def watch(self, coalescer: Coalescer) -> None:
        """Report how many queries wait and whether the index fails."""
        pending = Gauge(
            "research_pending_queries", "Queries that wait for a search.", registry=self.registry
        )
        pending.set_function(lambda: coalescer.pending)
        healthy = Gauge(
            "research_healthy", "1 unless the last search failed.", registry=self.registry
        )
        healthy.set_function(lambda: float(not coalescer.failure))

    def answered(self, dialect: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(dialect, str(status)).inc()
        self._seconds.labels(dialect).observe(seconds)

    def searched(self, queries: int, seconds: float) -> None:
        """Count one search of the index."""
        self._batch.observe(queries)
        self._search.observe(seconds)
