"""The server answers every dialect, keeps its limits, and never answers 200 for a failure."""

from __future__ import annotations

import argparse
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


def test_a_long_query_is_cut_and_takes_no_other_with_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        status, found = post(url + "/batch_search", {"query": ["a" * 501, "b"], "top_n": 1})
        wanted = [FakeRetriever().passages(query, 1)[0].contents for query in ("a" * 500, "b")]
        assert (status, [row[0]["contents"] for row in found]) == (200, wanted)
    assert caplog.text.count("a query has 501 characters") == 1


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


def test_a_stopping_server_answers_what_is_in_flight() -> None:
    retriever = FakeRetriever(delay=0.3)
    server = BackgroundServer(retriever)
    with ThreadPoolExecutor(1) as pool:
        with server:
            answer = pool.submit(post, server.url + "/search", {"query": "a"})
            while not retriever.calls:
                time.sleep(0.005)
        assert answer.result()[0] == 200


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
