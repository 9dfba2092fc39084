"""Asking servers that may fail: attempts, pauses, and which of several urls to ask next.

A url that fails several times in a row is left alone for a while that doubles each time; then one
single request tries it, and its outcome closes the circuit or opens it again. Where a server must
be readied before it is asked, as rollout servers are given weights, ``revive`` tries it instead.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from research_rl.envs.web.client import RefusedByServerError, TransientError

log = logging.getLogger(__name__)
_T = TypeVar("_T")
Clock = Callable[[], float]
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 8.0
_POLL = 0.1
"""Seconds between two looks for a server that is being readied."""


class NoAnswerError(Exception):
    """No server answered in time; says what each of them said last.

    Args:
        message: what they said.
        attempts: requests that were sent.
        failures: how many of those spoke against a server's health.
    """

    def __init__(self, message: str, attempts: int = 0, failures: int = 0) -> None:
        super().__init__(message)
        self.attempts, self.failures = attempts, failures


class Breaker:
    """The circuit of one url: closed, open or half-open. Not locked; ``Endpoints`` is.

    Args:
        threshold: failures in a row that open the circuit.
        cooldown: seconds it stays open the first time.
        max_cooldown: seconds it stays open at most.
        clock: seconds that only grow.
        half_open: whether a probe must close it first.
    """

    def __init__(
        self,
        threshold: int = 3,
        cooldown: float = 0.5,
        max_cooldown: float = 8.0,
        clock: Clock = time.monotonic,
        half_open: bool = False,
    ) -> None:
        self._threshold = threshold
        self._first_cooldown = cooldown
        self._cooldown = cooldown
        self._max_cooldown = max_cooldown
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = clock() if half_open else None
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
        self.readied()
        self._cooldown = self._first_cooldown

    def failed(self) -> None:
        """Count a failure; open the circuit at the threshold, or again after a failed probe."""
        self._failures += 1
        if self._failures < self._threshold:
            return
        if self._probing or self._open_until is None:
            self._open_until = self._clock() + self._cooldown
            self._cooldown = min(2 * self._cooldown, self._max_cooldown)
        self._probing = False

    def readied(self) -> None:
        """Close the circuit; the next cooldown stays long until a request has succeeded."""
        self._failures = 0
        self._open_until = None
        self._probing = False

    def abandoned(self) -> None:
        """Forget a request that said nothing about the server's health."""
        self._probing = False


class Endpoint:
    """One url with its circuit, and the number of its requests under way and answered."""

    def __init__(self, url: str, breaker: Breaker) -> None:
        self.url = url
        self.breaker = breaker
        self.in_flight = 0
        self.served = 0
        self.last_error = ""

    @property
    def up(self) -> bool:
        """Whether requests may be sent to it."""
        return self.breaker.state == "closed"


class Endpoints:
    """Urls of servers that answer alike; thread-safe.

    Args:
        urls: at least one.
        clock: seconds that only grow.
        revive: readies the server at a url and calls ``readied``, or raises; called in a thread of
            its own where a url has failed, or was never readied. None lets a request try it.
    """

    def __init__(
        self,
        urls: Sequence[str],
        clock: Clock = time.monotonic,
        revive: Callable[[str], None] | None = None,
    ) -> None:
        limits: dict[str, Any] = {}
        if revive is not None:
            limits = {"threshold": 1, "max_cooldown": 30.0, "half_open": True}
        self.members = [Endpoint(url, Breaker(clock=clock, **limits)) for url in urls]
        """Every url and how it is."""
        self._clock = clock
        self._revive = revive
        self._lock = threading.Lock()
        self._turn = 0
        self._probes: ThreadPoolExecutor | None = None

    @property
    def urls(self) -> list[str]:
        """The urls as they were given."""
        return [endpoint.url for endpoint in self.members]

    @property
    def last_error(self) -> str:
        """The newest error of every url that has one."""
        return _told({one.url: one.last_error for one in self.members if one.last_error})

    def ask(
        self,
        send: Callable[[str], _T],
        window: float,
        cancelled: threading.Event | None = None,
        most_failures: int | None = None,
    ) -> _T:
        """Return what ``send`` returns for one of the urls, tried again after a TransientError.

        Args:
            send: asks the server at a url, once; what else it raises is raised as it is.
            window: seconds for which failures are tried again.
            cancelled: set when nobody waits for the answer any more.
            most_failures: after which to give up; the window then begins anew with each attempt,
                for a request may take longer than it.

        Raises:
            NoAnswerError: nobody answered in time, or it was cancelled.
            RefusedByServerError: by ``send``; the server is well, and asking again is no use.
        """
        cancelled = cancelled or threading.Event()
        deadline = self._clock() + window
        said: dict[str, str] = {}
        tried: set[str] = set()
        attempts, failures, pause = 0, 0, 0.0
        while not cancelled.is_set() and (most_failures is None or failures < most_failures):
            endpoint = self.acquire(tried)
            if not isinstance(endpoint, Endpoint):
                delay = _backoff(attempts, pause) if tried else endpoint
                if self._clock() + delay > deadline:
                    break
                cancelled.wait(delay)
                tried.clear()
                continue
            attempts += 1
            try:
                return self._sent(endpoint, send)
            except TransientError as error:
                tried.add(endpoint.url)
                said[endpoint.url] = str(error)
                failures += error.broken
                pause = error.retry_after or 0.0
            if most_failures is not None:
                deadline = self._clock() + window
        raise NoAnswerError(_told(said) or self.last_error or "not asked", attempts, failures)

    def _sent(self, endpoint: Endpoint, send: Callable[[str], _T]) -> _T:
        """Send one request, and note what it says of the server."""
        try:
            answer = send(endpoint.url)
        except TransientError as error:
            self.failed(endpoint, str(error), error.broken)
            raise
        except RefusedByServerError as error:
            self.failed(endpoint, str(error), broken=False)
            raise
        except BaseException:
            self.released(endpoint)
            raise
        self.succeeded(endpoint)
        return answer

    def wait_for_one(self, window: float) -> None:
        """Return as soon as a url may be asked.

        Raises:
            NoAnswerError: there was none for ``window`` seconds.
        """
        deadline = self._clock() + window
        while not isinstance(found := self.acquire(), Endpoint):
            if self._clock() + found > deadline:
                raise NoAnswerError(self.last_error)
            time.sleep(found)
        self.released(found)

    def acquire(self, tried: Container[str] = ()) -> Endpoint | float:
        """Return the least busy url that may be asked, or the seconds until one may be.

        Urls in ``tried`` are left out; the wait is infinite when nothing else is there.
        """
        with self._lock:
            self._begin_probes()
            order = self.members[self._turn :] + self.members[: self._turn]
            order = [endpoint for endpoint in order if endpoint.url not in tried]
            if not order:
                return float("inf")
            ready = [endpoint for endpoint in order if self._wait(endpoint) == 0.0]
            if not ready:
                return min(map(self._wait, order))
            chosen = min(ready, key=lambda endpoint: endpoint.in_flight)
            chosen.breaker.ask()
            chosen.in_flight += 1
            self._turn = (self.members.index(chosen) + 1) % len(self.members)
            return chosen

    def succeeded(self, endpoint: Endpoint) -> None:
        """Give back a url that answered."""
        with self._lock:
            endpoint.in_flight -= 1
            endpoint.served += 1
            if self._counts(endpoint):
                self._close(endpoint)
                endpoint.breaker.succeeded()

    def failed(self, endpoint: Endpoint, error: str, broken: bool = True) -> None:
        """Give back a url that did not serve the request; ``broken`` says it is not healthy."""
        with self._lock:
            endpoint.in_flight -= 1
            if not self._counts(endpoint):
                return
            if broken:
                self._take_out(endpoint, error)
            else:
                endpoint.last_error = error
                endpoint.breaker.succeeded()

    def released(self, endpoint: Endpoint) -> None:
        """Give back a url of whose health the request said nothing."""
        with self._lock:
            endpoint.in_flight -= 1
            if self._counts(endpoint):
                endpoint.breaker.abandoned()

    def readied(self, url: str) -> None:
        """Let a server be asked that has been readied."""
        with self._lock:
            endpoint = self._of(url)
            self._close(endpoint)
            endpoint.breaker.readied()

    def take_out(self, url: str, error: str) -> None:
        """Ask a server no more until it has been readied."""
        with self._lock:
            self._take_out(self._of(url), error)

    def close(self) -> None:
        """Wait for the threads that ready servers, and end them; others begin where needed."""
        with self._lock:
            probes, self._probes = self._probes, None
        if probes is not None:
            probes.shutdown()

    def _of(self, url: str) -> Endpoint:
        return next(endpoint for endpoint in self.members if endpoint.url == url)

    def _counts(self, endpoint: Endpoint) -> bool:
        """Whether an outcome says how a url is now: not where it must be readied first."""
        return self._revive is None or endpoint.up

    def _wait(self, endpoint: Endpoint) -> float:
        if self._revive is None:
            return endpoint.breaker.wait()
        return 0.0 if endpoint.up else _POLL

    def _close(self, endpoint: Endpoint) -> None:
        if endpoint.last_error and not endpoint.up:
            log.warning("the server %s is back", endpoint.url)  # as loud as that it went
        endpoint.last_error = ""

    def _take_out(self, endpoint: Endpoint, error: str) -> None:
        known = bool(endpoint.last_error) and not endpoint.up
        endpoint.breaker.failed()
        endpoint.last_error = error
        if not (known or endpoint.up):
            log.warning("the server %s is taken out: %s", endpoint.url, error)

    def _begin_probes(self) -> None:
        """Ready each server that is due, in a thread; the lock is held."""
        if self._revive is None:
            return
        for endpoint in self.members:
            if not endpoint.up and endpoint.breaker.wait() == 0.0:
                if self._probes is None:
                    self._probes = ThreadPoolExecutor(len(self.members), "probe")
                endpoint.breaker.ask()
                self._probes.submit(self._probe, self._revive, endpoint)

    def _probe(self, revive: Callable[[str], None], endpoint: Endpoint) -> None:
        try:
            revive(endpoint.url)
        except Exception as error:
            with self._lock:
                self._take_out(endpoint, str(error))


def _told(errors: dict[str, str]) -> str:
    return "; ".join(f"{url}: {error}" for url, error in errors.items())


def _backoff(attempts: int, asked: float) -> float:
    """Return seconds to wait: doubling, with jitter, and no less than the server asked for."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempts, 16))
    return max(random.uniform(longest / 2, longest), min(asked, _LONGEST_PAUSE))
