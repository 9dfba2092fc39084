"""The client balances, merges, retries and detects, and is a value that can be copied."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from doubles.fake_retrieval import FakeRetriever, StubServer
from doubles.threads import Threads
from jsonargparse import ArgumentParser

from research_rl.envs.retrieval.web.client import RemoteRetriever
from research_rl.envs.retrieval.web.config import ServerConfig
from research_rl.envs.retrieval.web.dialects import DIALECTS, SearchRequest
from research_rl.envs.retrieval.web.json_checks import WireError
from research_rl.envs.retrieval.web.server import BackgroundServer
from research_rl.envs.types import Passage, Retriever, RetrieverUnavailable

FAKE = FakeRetriever()


def replying(name: str = "d", dialect: str = "research") -> Any:
    """A stub's answer: what ``FakeRetriever(name)`` finds, in a dialect."""
    speaks = DIALECTS[dialect]
    fake = FakeRetriever(name=name)

    def answer(path: str, body: Any) -> tuple[int, Any]:
        if path != speaks.route:
            return 404, {"detail": "Not Found"}
        try:
            request = speaks.decode_request(body)
        except WireError as error:
            return 422, {"detail": str(error)}
        rows = [fake.passages(query, request.top_k or 3) for query in request.queries]
        full = SearchRequest(request.queries, request.top_k, scores=True)
        return 200, speaks.encode_response(full, rows)

    return answer


def test_passages_are_those_of_the_served_index_in_the_order_of_the_queries() -> None:
    with BackgroundServer(FAKE) as server:
        remote = RemoteRetriever(server.url)
        queries = ["b", "a", "b", "c"]
        assert remote.search(queries, 4) == FAKE.search(queries, 4)
        assert remote.search([], 4) == []
        remote.close()
        assert remote.search(["a"], 1) == FAKE.search(["a"], 1)


def test_equal_queries_are_asked_once_and_large_searches_in_parts() -> None:
    with StubServer(replying()) as stub:
        remote = RemoteRetriever(stub.url, "research", max_batch=3)
        queries = [f"q{i % 7}" for i in range(20)]
        assert remote.search(queries, 2) == FAKE.search(queries, 2)
    sizes = [len(body["query"]) for _, body in stub.requests]
    assert sorted(sizes) == [1, 3, 3]


def test_commas_in_queries_are_no_values() -> None:
    with BackgroundServer(FAKE) as server:
        queries = [f"{i}: " + 'a, [b], {c} "d" \\ ' * 100 for i in range(256)]
        assert RemoteRetriever(server.url).search(queries, 1) == FAKE.search(queries, 1)


def test_what_is_too_large_for_the_server_goes_in_parts() -> None:
    with BackgroundServer(FAKE, ServerConfig(max_body=4000)) as server:
        queries = [f"{i} " + "long " * 100 for i in range(20)]
        remote = RemoteRetriever(server.url)
        assert remote.search(queries, 1) == FAKE.search(queries, 1)
        with pytest.raises(RetrieverUnavailable, match=r"status 413, .*4000 bytes"):
            remote.search(["a", "long " * 1000], 1)


def test_a_closed_retriever_leaves_no_thread_and_can_be_used_again() -> None:
    queries, threads = [f"q{i}" for i in range(5)], Threads()
    with StubServer(replying()) as stub, RemoteRetriever(stub.url, max_batch=1) as remote:
        for _ in range(2):
            assert remote.search(queries, 1) == FAKE.search(queries, 1)
            assert threads.running("retriever") > 0
            remote.close()
            assert threads.running("retriever") == 0
        remote.search(queries, 1)
    assert threads.running("retriever") == 0


def test_replicas_share_the_work() -> None:
    with StubServer(replying()) as first, StubServer(replying()) as second:
        remote = RemoteRetriever([first.url, second.url], "research", max_batch=1)
        queries = [f"q{i}" for i in range(20)]
        assert remote.search(queries, 1) == FAKE.search(queries, 1)
        for _ in range(4):
            remote.search(["again"], 1)
    assert min(len(first.requests), len(second.requests)) >= 5


def test_a_dead_replica_is_left_out_and_comes_back() -> None:
    with StubServer(replying()) as living:
        with StubServer(replying()) as mortal:
            port = mortal.port
            remote = RemoteRetriever([living.url, mortal.url], "research")
            remote.search(["a"], 1)
        for i in range(8):
            assert remote.search([f"q{i}"], 1) == FAKE.search([f"q{i}"], 1)
        with StubServer(replying(), port=port) as back:
            deadline = time.monotonic() + 5
            while not back.requests and time.monotonic() < deadline:
                remote.search(["a"], 1)
                time.sleep(0.02)
            assert back.requests


class PartRetriever(Retriever):
    """Holds passages with scores of its own, as a shard does."""

    def __init__(self, scores: Sequence[float], name: str) -> None:
        self.found = [Passage(f"{name}{i}", "text", score) for i, score in enumerate(scores)]

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return [self.found[:k] for _ in queries]


def test_shards_are_merged_by_score_and_none_may_be_missing() -> None:
    with BackgroundServer(PartRetriever([0.9, 0.5, 0.1], "a")) as first:
        with BackgroundServer(PartRetriever([0.9, 0.8, 0.7], "b")) as second:
            remote = RemoteRetriever([first.url, second.url], mode="sharded", retry_window=0.3)
            rows = remote.search(["x", "y"], 4)
            assert [[p.id for p in row] for row in rows] == [["a0", "b0", "b1", "b2"]] * 2
        with pytest.raises(RetrieverUnavailable, match=second.url):
            remote.search(["x"], 4)


@pytest.mark.parametrize("name", ["research", "search-r1", "skyrl", "zerosearch", "rllm"])
def test_auto_finds_the_dialect(name: str) -> None:
    with StubServer(replying(dialect=name)) as stub:
        found = RemoteRetriever(stub.url, retry_window=0).search(["a"], 2)
        assert [p.contents for p in found[0]] == [p.contents for p in FAKE.passages("a", 2)]


def test_auto_says_what_it_tried() -> None:
    with (
        StubServer(lambda path, body: (200, {"hello": "world"})) as stub,
        pytest.raises(RetrieverUnavailable, match=r"known dialect.*research:.*r1-searcher:"),
    ):
        RemoteRetriever(stub.url).search(["a"], 2)


def test_auto_waits_for_a_server_that_is_still_starting() -> None:
    with StubServer(replying()) as stub:
        port = stub.port
    late = StubServer(replying(), port=port)
    timer = threading.Timer(0.4, late.__enter__)
    timer.start()
    try:
        assert RemoteRetriever(stub.url).search(["a"], 1) == FAKE.search(["a"], 1)
    finally:
        timer.join()
        late.__exit__()


def test_the_key_is_sent_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with BackgroundServer(FAKE, ServerConfig(api_key="s3cret")) as server:
        with pytest.raises(RetrieverUnavailable, match=r"1 attempts.*status 401"):
            RemoteRetriever(server.url, "research").search(["a"], 1)
        remote = RemoteRetriever(server.url, api_key="s3cret")
        assert remote.search(["a"], 1)
        assert "s3cret" not in repr(remote)
        monkeypatch.setenv("RESEARCH_API_KEY", "s3cret")
        assert RemoteRetriever(server.url).search(["a"], 1)


def test_it_is_a_value() -> None:
    with BackgroundServer(FAKE) as server:
        remote = RemoteRetriever(server.url, max_batch=7, allow_empty=True)
        remote.search(["a"], 1)
        twin = pickle.loads(pickle.dumps(remote))
        assert twin.__reduce__() == remote.__reduce__()
        assert twin.search(["a"], 1) == FAKE.search(["a"], 1)
        assert copy.deepcopy(remote) is remote


def test_many_threads_share_one_client() -> None:
    with BackgroundServer(FAKE) as server:
        remote = RemoteRetriever(server.url, connections=4)
        wrong: list[str] = []

        def work(number: int) -> None:
            for i in range(5):
                query = f"{number}-{i}"
                if remote.search([query], 2) != FAKE.search([query], 2):
                    wrong.append(query)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_it_works_from_yaml(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_argument("--index", type=str | Retriever | None)
    config = tmp_path / "config.yaml"
    config.write_text(
        "index:\n"
        "  class_path: research_rl.envs.retrieval.web.client.RemoteRetriever\n"
        "  init_args: {url: ['http://a:1', 'http://b:2'], dialect: search-r1, timeout: 5}\n"
    )
    parser.add_argument("--config", action="config")
    made = parser.instantiate(parser.parse_args([f"--config={config}"])).index
    assert isinstance(made, RemoteRetriever)
    assert (made.urls, made.timeout) == (["http://a:1", "http://b:2"], 5)


@pytest.mark.parametrize("url", ["http://a:1/", "http://a:1/retrieve", "http://a:1/batch_search/"])
def test_a_route_at_the_end_of_the_url_is_understood(url: str) -> None:
    assert RemoteRetriever(url).urls == ["http://a:1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "a:1"}, "must start with http"),
        ({"url": []}, "one server or several"),
        ({"url": ["http://a", "http://a/"]}, "different ones"),
        ({"url": "http://a/retrieve", "dialect": "research"}, "search-r1 or skyrl"),
        ({"dialect": "elastic"}, "must be one of auto, research"),
        ({"mode": "split"}, "replicated or sharded"),
        ({"mode": "sharded", "dialect": "zerosearch"}, "must have scores"),
        ({"timeout": 0}, "timeout must be positive"),
        ({"max_batch": 0}, "must be positive"),
    ],
)
def test_wrong_arguments_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RemoteRetriever(**{"url": "http://a:1", **settings})


@pytest.mark.parametrize(("queries", "k"), [("a", 1), (["a"], 0)])
def test_wrong_searches_are_refused_before_they_are_sent(queries: Any, k: int) -> None:
    with pytest.raises((ValueError, TypeError), match="must"):
        RemoteRetriever("http://127.0.0.1:9", retry_window=60).search(queries, k)


def test_a_busy_server_is_asked_again_without_opening_its_circuit() -> None:
    busy = [True] * 4

    def answer(path: str, body: Any) -> tuple[int, Any]:
        return (429, {"detail": "busy"}) if busy and busy.pop() else replying()(path, body)

    with StubServer(answer) as stub:
        assert RemoteRetriever(stub.url, "research").search(["a"], 1) == FAKE.search(["a"], 1)
        assert len(stub.requests) == 5
