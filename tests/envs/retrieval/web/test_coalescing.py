"""Requests that come together are searched together, and none pays for another."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from doubles.fake_retrieval import FakeRetriever, post

from research_rl.envs.retrieval.web.batching import Coalescer, OverloadedError
from research_rl.envs.retrieval.web.config import ServerConfig
from research_rl.envs.retrieval.web.server import BackgroundServer
from research_rl.envs.types import Passage


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
