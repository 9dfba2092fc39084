"""The server answers every dialect, keeps its limits, and never answers 200 for a failure."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from doubles.fake_retrieval import FakeRetriever, post

from research_rl.envs.retrieval import BM25Retriever
from research_rl.envs.retrieval.web import server as server_module
from research_rl.envs.retrieval.web.batching import Coalescer, OverloadedError
from research_rl.envs.retrieval.web.config import ServerConfig
from research_rl.envs.retrieval.web.dialects import DIALECTS
from research_rl.envs.retrieval.web.server import BackgroundServer, add_serve_arguments
from research_rl.envs.types import Passage, Retriever, RetrieverUnavailable


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    config = ServerConfig(max_body=4000, max_queries=5, max_query_chars=500, max_top_k=20)
    with BackgroundServer(FakeRetriever(), config) as server:
        yield server.url


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_has_a_route_of_its_own_name(url: str, name: str) -> None:
    dialect = DIALECTS[name]
    status, reply = post(f"{url}/{name}{dialect.route}", dialect.encode_request(["Emma?"], 3))
    assert status == 200
    found = dialect.decode_response(reply, ["Emma?"], 3)
    wanted = FakeRetriever().passages("Emma?", 3)
    assert [[p.contents for p in row] for row in found] == [[p.contents for p in wanted]]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/search", {"query": "", "top_n": 3}, 400, "query 0 must not be empty"),
        ("/batch_search", {"query": ["a", " "], "top_n": 3}, 400, "query 1 must not be empty"),
        ("/retrieve", {"queries": ["a", ""]}, 400, "query 1 must not be empty"),
        ("/retrieve", b"{", 400, "must be JSON"),
        ("/retrieve", {"question": "a"}, 422, "queries"),
        ("/search", {"queries": ["a"]}, 422, "must hold query"),
        ("/search", {"query": "a", "top_n": 21}, 422, "at most 20 passages"),
        ("/batch_search", {"query": ["a"] * 6}, 422, "at most 5 queries"),
        ("/search", {"query": "a" * 501}, 422, "at most 500 characters, got 501"),
        ("/search", {"query": "a" * 5000}, 413, "at most 4000 bytes"),
        ("/find", {"query": "a"}, 404, "known: /batch_search"),
        ("/rllm/search", {"query": "a"}, 404, "has no route /search"),
        ("/nobody/retrieve", {"query": "a"}, 404, "'nobody' has no route"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    url: str, path: str, body: Any, status: int, message: str
) -> None:
    given, reply = post(url + path, body)
    assert given == status
    assert message in str(reply["detail"])


def test_a_body_of_unknown_length_is_cut_off(url: str) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 1000

    request = urllib.request.Request(
        url + "/search",
        parts(),
        {"Transfer-Encoding": "chunked", "Content-Type": "application/json"},
        method="POST",
    )
    with pytest.raises(OSError, match=r"413|reset|Broken pipe"):
        urllib.request.urlopen(request, timeout=10)


def test_health_has_researchs_form(url: str) -> None:
    assert post(url + "/health", None, method="GET") == (
        200,
        {"status": "healthy", "retrievers": {"total": 1, "available": 1}},
    )


def test_metrics_are_prometheus_text(url: str) -> None:
    post(url + "/search", {"query": "a"})
    with urllib.request.urlopen(url + "/metrics") as response:
        text = response.read().decode()
        assert response.headers["Content-Type"].startswith("text/plain")
    assert 'research_requests_total{dialect="research-single",status="200"}' in text
    for name in ("request_seconds_bucket", "batch_queries_sum", "pending_queries", "healthy 1.0"):
        assert f"research_{name}" in text


def test_peers_may_search_for_nothing_where_it_is_allowed() -> None:
    with BackgroundServer(FakeRetriever(), ServerConfig(empty_query="search")) as server:
        status, reply = post(server.url + "/batch_search", {"query": ["", "a"], "top_n": 2})
        assert status == 200
        assert [len(row) for row in reply] == [2, 2]


def test_a_key_is_asked_for_everywhere_but_health() -> None:
    body = {"query": "a"}
    with BackgroundServer(FakeRetriever(), ServerConfig(api_key="s3cret")) as server:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "s3cret"}):
            assert post(server.url + "/search", body, headers)[0] == 401
        assert post(server.url + "/metrics", None, method="GET")[0] == 401
        assert post(server.url + "/search", body, {"Authorization": "Bearer s3cret"})[0] == 200
        assert post(server.url + "/health", None, method="GET")[0] == 200
    assert "s3cret" not in repr(ServerConfig(api_key="s3cret"))


def test_a_failing_retriever_is_503_and_unhealthy_until_it_works_again() -> None:
    retriever = FakeRetriever(error=RetrieverUnavailable("the disk is gone"))
    with BackgroundServer(retriever) as server:
        status, reply = post(server.url + "/search", {"query": "a"})
        assert status == 503
        assert "the disk is gone" in reply["detail"]
        assert post(server.url + "/health", None, method="GET")[0] == 503
        retriever.error = None
        assert post(server.url + "/health", None, method="GET")[0] == 200
        assert post(server.url + "/search", {"query": "a"})[0] == 200


class WrongRetriever(Retriever):
    """Breaks the promise of ``search`` in the way it is told."""

    def __init__(self, results: Any) -> None:
        self.results = results

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return self.results  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "one list of passages for each of 1 queries, got 0"),
        (None, "got None"),
        ([None], "got None for the query 'a'"),
        ([[Passage("1", "a", float("nan"))]], "finite"),
        ([[Passage(1, "a")]], "strings as id"),  # type: ignore[arg-type]
        ([[Passage("1", "a")] * 11], "at most 10 passages"),
    ],
)
def test_a_wrong_result_of_the_index_is_not_sent(results: Any, message: str) -> None:
    with BackgroundServer(WrongRetriever(results)) as server:
        status, reply = post(server.url + "/search", {"query": "a", "return_score": True})
        assert status == 503
        assert message in reply["detail"]


def test_a_slow_index_is_504_and_the_server_lives_on() -> None:
    retriever = FakeRetriever(delay=0.6)
    with BackgroundServer(retriever, ServerConfig(timeout=0.2)) as server:
        status, reply = post(server.url + "/search", {"query": "a"})
        assert status == 504
        assert "0.2 s" in reply["detail"]
        retriever.delay = 0.0
        time.sleep(0.5)
        assert post(server.url + "/search", {"query": "a"})[0] == 200


def test_concurrent_requests_share_searches_and_get_their_own_passages() -> None:
    retriever = FakeRetriever(delay=0.05)
    with BackgroundServer(retriever) as server, ThreadPoolExecutor(16) as pool:

        def ask(number: int) -> list[dict[str, str]]:
            body = {"query": f"q{number}", "top_n": 1 + number % 2}
            status, reply = post(server.url + "/search", body)
            assert status == 200
            return reply  # type: ignore[no-any-return]

        replies = list(pool.map(ask, range(32)))
    for number, reply in enumerate(replies):
        assert len(reply) == 1 + number % 2
        assert all(document["contents"].startswith(f"q{number} ") for document in reply)
    assert len(retriever.calls) < 16
    assert all(len(set(queries)) == len(queries) for queries, _ in retriever.calls)


def test_a_stopping_server_answers_what_is_in_flight() -> None:
    retriever = FakeRetriever(delay=0.3)
    server = BackgroundServer(retriever)
    with ThreadPoolExecutor(1) as pool:
        with server:
            answer = pool.submit(post, server.url + "/search", {"query": "a"})
            while not retriever.calls:
                time.sleep(0.005)
        assert answer.result()[0] == 200


def coalesce(
    search: Any, requests: list[tuple[list[str], int]], **settings: Any
) -> tuple[list[Any], list[tuple[int, float]]]:
    """Submit all requests at once; return their outcomes and the searches observed."""
    searches: list[tuple[int, float]] = []

    async def run() -> list[Any]:
        coalescer = Coalescer(
            search, observe=lambda count, seconds: searches.append((count, seconds)), **settings
        )
        jobs = [coalescer.submit(queries, k) for queries, k in requests]
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        await coalescer.close()
        return list(outcomes)

    return asyncio.run(run()), searches


def test_one_poisoned_query_does_not_fail_its_neighbours() -> None:
    fake = FakeRetriever()

    def search(queries: Sequence[str], k: int) -> list[list[Passage]]:
        if "poison" in queries:
            raise ValueError("cannot encode")
        return fake.search(queries, k)

    outcomes, _ = coalesce(search, [(["a"], 1), (["poison"], 1), (["b", "a"], 1)])
    assert outcomes[0] == [fake.passages("a", 1)]
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] == [fake.passages("b", 1), fake.passages("a", 1)]


def test_batches_are_bounded_and_hold_one_k() -> None:
    fake = FakeRetriever()
    requests = [([f"q{i}", "same"], 1 + i % 2) for i in range(8)]
    outcomes, _ = coalesce(fake.search, requests, max_batch=4)
    for (queries, k), outcome in zip(requests, outcomes, strict=True):
        assert outcome == [fake.passages(query, k) for query in queries]
    assert [len(queries) for queries, _ in fake.calls] == [3, 3, 3, 3]
    assert {k for _, k in fake.calls} == {1, 2}


def test_a_request_larger_than_a_batch_goes_in_parts() -> None:
    outcomes, searches = coalesce(
        FakeRetriever().search, [([f"q{i}" for i in range(9)], 1), (["z"], 1)], max_batch=4
    )
    assert [len(outcome) for outcome in outcomes] == [9, 1]
    counts = [count for count, _ in searches]
    assert (sum(counts), max(counts)) == (10, 4)


def test_too_many_waiting_queries_are_refused() -> None:
    outcomes, _ = coalesce(FakeRetriever().search, [(["a"], 1)] * 5, max_pending=3)
    assert [isinstance(outcome, OverloadedError) for outcome in outcomes] == [False] * 3 + [
        True
    ] * 2


def test_a_lone_caller_does_not_wait_for_others_and_several_do() -> None:
    async def run() -> list[int]:
        sizes: list[int] = []
        coalescer = Coalescer(
            FakeRetriever().search, max_wait=0.3, observe=lambda count, _: sizes.append(count)
        )
        started = time.monotonic()
        for i in range(5):
            await coalescer.submit([f"q{i}"], 1)
        assert time.monotonic() - started < 0.3
        await asyncio.gather(*(coalescer.submit([f"q{i}"], 1) for i in range(4)))
        late = asyncio.ensure_future(coalescer.submit(["early"], 1))
        await asyncio.sleep(0.02)
        await asyncio.gather(late, coalescer.submit(["late"], 1))
        await coalescer.close()
        return sizes

    assert asyncio.run(run()) == [1, 1, 1, 1, 1, 4, 2]


def test_who_gave_up_is_not_searched_for() -> None:
    fake = FakeRetriever(delay=0.1)

    async def run() -> None:
        coalescer = Coalescer(fake.search)
        first = asyncio.ensure_future(coalescer.submit(["a"], 1))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(coalescer.submit(["b"], 1))
        await asyncio.sleep(0)
        second.cancel()
        await first
        await coalescer.close()

    asyncio.run(run())
    assert [queries for queries, _ in fake.calls] == [["a"]]


def test_the_command_line_fills_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    args = parser.parse_args(["idx", "--port", "9", "--max-wait-ms", "0.5", "--timeout", "3"])
    served: list[Any] = []
    monkeypatch.setenv(server_module.SERVER_KEY_VARIABLE, "key")
    opened = "research_rl.envs.retrieval.index.load_retriever"
    monkeypatch.setattr(opened, lambda folder, corpus: (folder, corpus))
    monkeypatch.setattr(server_module, "serve_search", lambda *given: served.append(given))
    server_module.run_serve(args)
    assert served == [
        (
            (Path("idx"), None),
            "127.0.0.1",
            9,
            ServerConfig(max_wait_ms=0.5, timeout=3.0, api_key="key"),
        )
    ]
    assert "(8388608)" in parser.format_help()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch": 0}, "max_batch must be positive, got 0"),
        ({"max_wait_ms": -1.0}, "max_wait_ms must not be negative"),
        ({"default_top_k": 101}, "default_top_k must be at most max_top_k 100, got 101"),
        ({"empty_query": "ignore"}, "refuse, search"),
        ({"ambiguous_dialect": "skyrl"}, "zerosearch, rllm"),
        ({"api_key": " "}, "api_key"),
    ],
)
def test_a_wrong_configuration_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerConfig(**settings)


def test_nothing_of_the_web_is_imported_before_a_server_starts() -> None:
    code = (
        "import sys, research_rl.envs.retrieval.web.server, research_rl.envs.retrieval.web.client;"
        "assert not {'fastapi', 'uvicorn', 'prometheus_client', 'urllib3', 'torch'} & set("
        "sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"fastapi.*pip install -e '\.\[serve\]'"):
        BackgroundServer(FakeRetriever())


def test_a_taken_port_says_so() -> None:
    with BackgroundServer(FakeRetriever()) as server, pytest.raises(OSError, match="in use"):
        BackgroundServer(FakeRetriever(), port=server.port)
    assert threading.active_count() < 50


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_page_cannot_post(url: str, kind: str) -> None:
    body = b'{"query": "a", "top_n": 3}'
    status, told = post(f"{url}/search", body, {"Content-Type": kind})
    assert status == 415
    assert "application/json" in told["detail"]


def test_a_search_that_nobody_waits_for_is_not_made() -> None:
    retriever = FakeRetriever(delay=0.3)
    with BackgroundServer(retriever, ServerConfig(max_batch=1)) as server:

        def ask(query: str) -> http.client.HTTPConnection:
            asking = http.client.HTTPConnection("127.0.0.1", server.port)
            body = json.dumps({"query": query, "top_n": 1})
            asking.request("POST", "/search", body, {"Content-Type": "application/json"})
            return asking

        first = ask("first")
        while not retriever.calls:
            time.sleep(0.01)
        left = [ask(f"left {number}") for number in range(5)]
        time.sleep(0.1)
        for one in left:
            one.close()
        time.sleep(0.1)
        last = ask("last")
        assert first.getresponse().status == 200
        assert last.getresponse().status == 200
        assert [queries for queries, _ in retriever.calls] == [["first"], ["last"]]


def test_a_large_request_does_not_hold_up_the_others() -> None:
    """It is searched in parts, between which others have their turn."""
    fake = FakeRetriever(delay=0.05)

    async def ask() -> tuple[list[list[Passage]], int]:
        coalescer = Coalescer(fake.search, max_batch=16)
        large = asyncio.create_task(coalescer.submit([f"q{i}" for i in range(100)], 1))
        await asyncio.sleep(0.02)
        await coalescer.submit(["small"], 1)
        calls = len(fake.calls)
        found = await large
        await coalescer.close()
        return found, calls

    found, calls = asyncio.run(ask())
    assert found == [fake.passages(f"q{i}", 1) for i in range(100)]
    assert calls <= 2  # the part that was under way, and its own
    assert max(len(queries) for queries, _ in fake.calls) == 16


@pytest.mark.parametrize("name", DIALECTS)
def test_what_matches_nothing_is_sent_as_none_in_every_dialect(name: str) -> None:
    pytest.importorskip("bm25s")
    passages = [Passage("1", '"Oslo"\na capital'), Passage("2", '"Lima"\na city')]
    dialect = DIALECTS[name]
    with BackgroundServer(BM25Retriever.from_passages(passages), ServerConfig()) as server:
        for query, wanted in (("zebra", []), ("capital", [passages[0].contents])):
            body = dialect.encode_request([query], 2)
            status, reply = post(f"{server.url}/{name}{dialect.route}", body)
            assert status == 200
            found = dialect.decode_response(reply, [query], 2)
            assert [[p.contents for p in row] for row in found] == [wanted]
