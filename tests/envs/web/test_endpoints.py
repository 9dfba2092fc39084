"""Whom to ask, how often, and what is said at the end: attempts, pauses, the choice of a url."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from doubles.threads import Threads
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs.web import endpoints as module
from research_rl.envs.web.client import RefusedByServerError, TransientError, base_url
from research_rl.envs.web.endpoints import Breaker, Endpoint, Endpoints, NoAnswerError

BUSY = TransientError("busy", retry_after=1.0, broken=False)
DEAD = TransientError("dead")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_circuit_opens_probes_once_and_closes() -> None:
    clock = Clock()
    breaker = Breaker(threshold=2, cooldown=1.0, max_cooldown=3.0, clock=clock)
    breaker.failed()
    assert (breaker.state, breaker.wait()) == ("closed", 0.0)
    breaker.failed()
    assert (breaker.state, breaker.wait()) == ("open", 1.0)
    waits = []
    for _ in range(4):
        clock.now += breaker.wait()
        assert (breaker.state, breaker.wait()) == ("half-open", 0.0)
        breaker.ask()
        assert breaker.wait() > 0  # the probe is out; nobody else may ask
        breaker.failed()
        waits.append(breaker.wait())
    assert waits == [2.0, 3.0, 3.0, 3.0]
    clock.now += 3.0
    breaker.ask()
    breaker.succeeded()
    assert (breaker.state, breaker.wait()) == ("closed", 0.0)
    breaker.failed()
    assert breaker.state == "closed"


def test_the_least_busy_url_is_taken_and_open_circuits_are_not() -> None:
    clock = Clock()
    endpoints = Endpoints(["a", "b"], clock)

    def take(*tried: str) -> Endpoint:
        endpoint = endpoints.acquire(tried)
        assert isinstance(endpoint, Endpoint)
        return endpoint

    first, second = take(), take()
    assert {first.url, second.url} == {"a", "b"}
    endpoints.succeeded(second)
    assert take() is second
    assert take(second.url) is first
    assert endpoints.acquire(["a", "b"]) == float("inf")
    for _ in range(3):
        endpoints.failed(second, "gone")
    assert take() is first
    assert endpoints.last_error == f"{second.url}: gone"
    assert endpoints.acquire([first.url]) == 0.5


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_backoff", lambda attempts, asked: 0.0)


def scripted(*outcomes: str | BaseException) -> tuple[list[str], Callable[[str], str]]:
    """A server's answers in their order, the last one for ever; and the urls that were asked."""
    asked: list[str] = []

    def send(url: str) -> str:
        outcome = outcomes[min(len(asked), len(outcomes) - 1)]
        asked.append(url)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return asked, send


def test_after_a_failure_another_url_is_asked_at_once() -> None:
    asked, send = scripted(DEAD, "yes")
    assert Endpoints(["a", "b"]).ask(send, window=0.0) == "yes"
    assert asked == ["a", "b"]


@pytest.mark.usefixtures("hurried")
def test_when_time_is_up_everybodys_last_word_is_told() -> None:
    clock = Clock()
    asked, send = scripted(DEAD, TransientError("dying"), DEAD)

    def slow(url: str) -> str:
        clock.now += 1.0
        return send(url)

    with pytest.raises(NoAnswerError) as error:
        Endpoints(["a", "b"], clock).ask(slow, window=3.5)
    assert asked == ["a", "b", "a", "b"]
    assert str(error.value) == "a: dead; b: dead"
    assert (error.value.attempts, error.value.failures) == (4, 4)


def test_who_is_not_asked_says_what_it_said_to_others() -> None:
    endpoints = Endpoints(["a"])
    for _ in range(3):
        with pytest.raises(NoAnswerError, match="a: dead"):
            endpoints.ask(scripted(DEAD)[1], window=0.0)
    asked, send = scripted("yes")
    with pytest.raises(NoAnswerError, match="a: dead") as error:
        endpoints.ask(send, window=0.0)
    assert (asked, error.value.attempts) == ([], 0)


def test_a_refusal_is_the_answer_of_a_healthy_server() -> None:
    endpoints = Endpoints(["a", "b"])
    for _ in range(9):
        asked, send = scripted(RefusedByServerError("no such route"), "yes")
        with pytest.raises(RefusedByServerError, match="no such route"):
            endpoints.ask(send, window=60.0)
        assert len(asked) == 1
    assert all(endpoint.up for endpoint in endpoints.members)


def test_who_waits_no_more_asks_no_more() -> None:
    cancelled = threading.Event()
    asked, send = scripted(DEAD)

    def hung_up(url: str) -> str:
        cancelled.set()
        return send(url)

    with pytest.raises(NoAnswerError):
        Endpoints(["a", "b"]).ask(hung_up, window=60.0, cancelled=cancelled)
    assert asked == ["a"]


@pytest.mark.usefixtures("hurried")
def test_a_limit_of_failures_counts_no_busy_server_and_renews_the_window() -> None:
    clock = Clock()
    asked, send = scripted(BUSY, BUSY, DEAD)

    def slow(url: str) -> str:
        clock.now += 100.0
        return send(url)

    with pytest.raises(NoAnswerError) as error:
        Endpoints(["a"], clock).ask(slow, window=10.0, most_failures=2)
    assert (len(asked), error.value.failures) == (4, 2)


@given(
    st.lists(
        st.sampled_from(
            [BUSY, DEAD, RefusedByServerError("no"), ValueError("bug"), KeyboardInterrupt(), "yes"]
        ),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_happens_no_request_is_left_under_way(outcomes: list[str | BaseException]) -> None:
    endpoints = Endpoints(["a", "b"])
    for outcome in outcomes:
        with suppress(NoAnswerError, RefusedByServerError, ValueError, KeyboardInterrupt):
            endpoints.ask(scripted(outcome)[1], window=0.0)
    assert not any(endpoint.in_flight for endpoint in endpoints.members)


def test_a_pause_grows_and_is_as_long_as_the_server_asks_for() -> None:
    pauses = [module._backoff(attempts, 0.0) for attempts in (1, 5, 60)]
    assert pauses == sorted(pauses)
    assert pauses[-1] <= 8.0
    assert module._backoff(0, 3.0) >= 3.0
    assert module._backoff(0, 3600.0) <= 8.0


class Nurse:
    """Readies servers when it is let."""

    def __init__(self, *urls: str) -> None:
        self.seen: list[str] = []
        self.well = threading.Event()
        self.came = threading.Semaphore(0)
        self.endpoints = Endpoints(list(urls), revive=self.revive)

    def revive(self, url: str) -> None:
        self.seen.append(url)
        self.came.release()
        self.well.wait(20)
        self.endpoints.readied(url)


@pytest.fixture
def nurse() -> Iterator[Nurse]:
    made = Nurse("a", "b")
    yield made
    made.well.set()
    made.endpoints.close()


@pytest.mark.usefixtures("hurried")
def test_a_server_is_asked_only_when_it_has_been_readied(
    nurse: Nurse, caplog: pytest.LogCaptureFixture
) -> None:
    endpoints = nurse.endpoints
    asked, send = scripted("yes")
    with pytest.raises(NoAnswerError):
        endpoints.ask(send, window=0.0)
    assert asked == []
    endpoints.readied("b")
    assert endpoints.ask(send, window=0.0) == "yes"
    assert asked == ["b"]
    for _ in range(2):
        nurse.came.acquire()  # both were looked at once, and nobody else is
    assert sorted(nurse.seen) == ["a", "b"]
    nurse.well.set()
    endpoints.close()
    assert all(endpoint.up for endpoint in endpoints.members)
    with caplog.at_level(logging.WARNING), pytest.raises(NoAnswerError):
        endpoints.ask(scripted(DEAD)[1], window=0.0)
    assert "the server a is taken out: dead" in caplog.text
    assert not any(endpoint.up for endpoint in endpoints.members), "one failure takes it out"
    endpoints.readied("a")
    assert [endpoint.up for endpoint in endpoints.members] == [True, False]
    assert "the server a is back" in caplog.text, "told as loudly as that it went"


def test_an_answer_to_a_question_of_before_readies_nobody(nurse: Nurse) -> None:
    endpoints = nurse.endpoints
    endpoints.readied("a")
    first, second, third, fourth = (endpoints.acquire(["b"]) for _ in range(4))
    assert isinstance(first, Endpoint)
    assert first is second is third is fourth
    endpoints.failed(first, "gone")
    endpoints.succeeded(first)
    endpoints.failed(first, "busy", broken=False)
    endpoints.released(first)
    assert not first.up
    assert (first.in_flight, first.last_error) == (0, "gone")


def test_waiting_for_one_says_why_there_is_none(nurse: Nurse) -> None:
    nurse.endpoints.take_out("a", "no route")
    with pytest.raises(NoAnswerError, match="a: no route"):
        nurse.endpoints.wait_for_one(0.0)
    nurse.well.set()
    nurse.endpoints.wait_for_one(20.0)
    assert not any(endpoint.in_flight for endpoint in nurse.endpoints.members)


def test_a_server_that_cannot_be_readied_says_why() -> None:
    def fails(url: str) -> None:
        raise OSError("disk full")

    endpoints = Endpoints(["a"], revive=fails)
    with pytest.raises(NoAnswerError):
        endpoints.wait_for_one(0.0)
    endpoints.close()
    assert endpoints.last_error == "a: disk full"
    assert not endpoints.members[0].up


def test_closing_ends_the_threads(nurse: Nurse) -> None:
    threads = Threads()
    nurse.endpoints.acquire()
    assert threads.running("probe") == 2
    nurse.well.set()
    nurse.endpoints.close()
    assert threads.running("probe") == 0


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h", "http://h"),
        ("https://h:1/x/", "https://h:1/x"),
        ("http://h/v1", "http://h"),
        ("http://h/v1/", "http://h"),
        ("http://h/api/chat", "http://h/api"),
    ],
)
def test_a_base_url_has_no_route_at_its_end(url: str, base: str) -> None:
    assert base_url(url, "/v1", "/chat") == base
    with pytest.raises(ValueError, match="must start with http:// or https://, got"):
        base_url(base.removeprefix("http"))
