"""Which server to ask next: a circuit breaker for each url, and a balance between urls.

A url that fails several times in a row is left alone for a while that doubles each time; then one
single request tries it, and its outcome closes the circuit or opens it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Sequence

Clock = Callable[[], float]


class Breaker:
    """The circuit of one url: closed, open or half-open. Not locked; ``Endpoints`` is.

    Args:
        threshold: failures in a row that open the circuit.
        cooldown: seconds it stays open the first time.
        max_cooldown: seconds it stays open at most.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        threshold: int = 3,
        cooldown: float = 0.5,
        max_cooldown: float = 8.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._threshold = threshold
        self._first_cooldown = cooldown
        self._cooldown = cooldown
        self._max_cooldown = max_cooldown
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None
        self._probing = False

    @property
    def state(self) -> str:
        """``closed``, ``open`` or ``half-open``."""
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    def wait(self) -> float:
        """Return the seconds until this url may be asked; 0 means now."""
        if self._open_until is None:
            return 0.0
        if self._probing:
            return self._first_cooldown
        return max(0.0, self._open_until - self._clock())

    def ask(self) -> None:
        """Note that a request goes out; in a half-open circuit it is the probe."""
        self._probing = self._open_until is not None

    def succeeded(self) -> None:
        """Close the circuit."""
        self._failures = 0
        self._cooldown = self._first_cooldown
        self._open_until = None
        self._probing = False

    def failed(self) -> None:
        """Count a failure; open the circuit at the threshold, or again after a failed probe."""
        self._failures += 1
        if self._failures < self._threshold:
            return
        if self._probing or self._open_until is None:
            self._open_until = self._clock() + self._cooldown
            self._cooldown = min(2 * self._cooldown, self._max_cooldown)
        self._probing = False

    def abandoned(self) -> None:
        """Forget a request that said nothing about the server's health."""
        self._probing = False


class Endpoint:
    """One url with its circuit and the number of its requests under way."""

    def __init__(self, url: str, clock: Clock = time.monotonic) -> None:
        self.url = url
        self.breaker = Breaker(clock=clock)
        self.in_flight = 0
        self.last_error = ""


class Endpoints:
    """Urls that hold the same index; thread-safe.

    Args:
        urls: at least one.
        clock: seconds that only grow.
    """

    def __init__(self, urls: Sequence[str], clock: Clock = time.monotonic) -> None:
        self._all = [Endpoint(url, clock) for url in urls]
        self._lock = threading.Lock()
        self._turn = 0

    @property
    def urls(self) -> list[str]:
        """The urls as they were given."""
        return [endpoint.url for endpoint in self._all]

    @property
    def last_error(self) -> str:
        """The newest error of every url that has one."""
        errors = [f"{endpoint.url}: {endpoint.last_error}" for endpoint in self._all]
        return "; ".join(error for error in errors if not error.endswith(": "))

    def acquire(self, tried: Container[str] = ()) -> Endpoint | float:
        """Return the least busy url that may be asked, or the seconds until one may be.

        Urls in ``tried`` are left out; the wait is infinite when nothing else is there.
        """
        with self._lock:
            order = self._all[self._turn :] + self._all[: self._turn]
            order = [endpoint for endpoint in order if endpoint.url not in tried]
            if not order:
                return float("inf")
            ready = [endpoint for endpoint in order if endpoint.breaker.wait() == 0.0]
            if not ready:
                return min(endpoint.breaker.wait() for endpoint in order)
            chosen = min(ready, key=lambda endpoint: endpoint.in_flight)
            chosen.breaker.ask()
            chosen.in_flight += 1
            self._turn = (self._all.index(chosen) + 1) % len(self._all)
            return chosen

    def succeeded(self, endpoint: Endpoint) -> None:
        """Give back a url that answered."""
        with self._lock:
            endpoint.in_flight -= 1
            endpoint.last_error = ""
            endpoint.breaker.succeeded()

    def failed(self, endpoint: Endpoint, error: str, broken: bool = True) -> None:
        """Give back a url that did not serve the request; ``broken`` says it is not healthy."""
        with self._lock:
            endpoint.in_flight -= 1
            endpoint.last_error = error
            if broken:
                endpoint.breaker.failed()
            else:
                endpoint.breaker.succeeded()

    def released(self, endpoint: Endpoint) -> None:
        """Give back a url of whose health the request said nothing."""
        with self._lock:
            endpoint.in_flight -= 1
            endpoint.breaker.abandoned()
