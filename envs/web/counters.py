"""What a server says of itself: that it runs, and its counters in Prometheus's text format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fastapi import FastAPI, Response
    from prometheus_client import CollectorRegistry, Metric


class Count(NamedTuple):
    """A number that a server tells."""

    name: str
    about: str
    value: float
    falls: bool = False
    """Whether it may become less, as the number of those that wait; else it only grows."""


class ServerCounters:
    """The routes ``/health`` and ``/metrics`` of a server.

    The first counter is the time of its start, by which a client knows that it was started anew.

    Args:
        read: returns the server's own counters as they are now.
    """

    def __init__(self, read: Callable[[], Iterable[Count]]) -> None:
        from prometheus_client import CollectorRegistry

        self._read = read
        self.started = time.time()
        self._registry = CollectorRegistry()
        own: Any = self  # all that a collector needs is ``collect``
        self._registry.register(own)

    def add_to(self, app: FastAPI) -> None:
        """Add the two routes to an application."""
        app.add_api_route("/health", _runs, methods=["GET"])
        app.add_api_route("/metrics", self._show, methods=["GET"])

    def collect(self) -> Iterator[Metric]:
        """Yield the counters as Prometheus has them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        begun = "When the server began."
        yield GaugeMetricFamily("process_start_time_seconds", begun, value=self.started)
        for count in self._read():
            kind = GaugeMetricFamily if count.falls else CounterMetricFamily
            yield kind(count.name, count.about, value=count.value)

    async def _show(self) -> Any:
        return metrics_reply(self._registry)


def metrics_reply(registry: CollectorRegistry) -> Response:
    """Return all counters of a registry in Prometheus's text format."""
    from fastapi import Response
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


async def _runs() -> Any:
    from fastapi import Response

    return Response(status_code=200)
