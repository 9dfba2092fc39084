"""Our server answers what the peers' clients send and read; our client reads what their servers
send.

The bodies and replies are written out here as the public code of each project has them (see
docs/serving.md), so that an error in our own encoders cannot hide itself.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from doubles.fake_retrieval import FakeRetriever, StubServer, post

from research_rl.envs.retrieval.web.client import DialectName, RemoteRetriever
from research_rl.envs.retrieval.web.config import ServerConfig
from research_rl.envs.retrieval.web.server import BackgroundServer
from research_rl.envs.types import Passage, RetrieverUnavailable

EMMA = "Who wrote Emma?"
WHO = "Who is Zoë?"
BODIES = {query: [f"{query} é\nbody {rank}" for rank in range(9)] for query in (EMMA, WHO)}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with BackgroundServer(FakeRetriever()) as server:
        yield server.url


def document(query: str, rank: int) -> dict[str, str]:
    return {"id": f"d{rank}", "contents": BODIES[query][rank]}


class TestOurServer:
    """Each test sends what the peer's client sends and reads as it reads."""

    def test_research_rollout(self, url: str) -> None:
        status, reply = post(url + "/batch_search", {"query": [EMMA, WHO], "top_n": 5})
        assert status == 200
        texts = ["\n\n".join(line["contents"] for line in item) for item in reply]
        assert texts == ["\n\n".join(BODIES[query][:5]) for query in (EMMA, WHO)]

    def test_research_single(self, url: str) -> None:
        body = {"query": EMMA, "top_n": 2, "return_score": False}
        assert post(url + "/search", body) == (200, [document(EMMA, 0), document(EMMA, 1)])

    def test_research_with_scores(self, url: str) -> None:
        body = {"query": EMMA, "top_n": 2, "return_score": True}
        documents = [document(EMMA, 0), document(EMMA, 1)]
        assert post(url + "/search", body) == (200, [documents, [1.0, 0.5]])
        many = {"query": [EMMA], "top_n": 2, "return_score": True}
        assert post(url + "/batch_search", many) == (200, [[documents], [[1.0, 0.5]]])

    def test_research_default_and_empty(self, url: str) -> None:
        assert len(post(url + "/search", {"query": EMMA})[1]) == 10
        status, reply = post(url + "/search", {"query": "  "})
        assert status == 400
        assert set(reply) == {"detail"}

    def test_search_r1(self, url: str) -> None:
        body = {"queries": [EMMA, WHO], "topk": 3, "return_scores": True}
        status, reply = post(url + "/retrieve", body)
        assert status == 200
        for query, items in zip((EMMA, WHO), reply["result"], strict=True):
            assert [item["document"] for item in items] == [document(query, i) for i in range(3)]
            assert [item["score"] for item in items] == [1.0, 0.5, pytest.approx(1 / 3)]

    def test_search_r1_without_scores(self, url: str) -> None:
        """Search-R1's own server answers this with status 500."""
        for extra in ({"return_scores": False}, {}, {"topk": None}):
            status, reply = post(url + "/retrieve", {"queries": [EMMA], **extra})
            assert status == 200
            assert reply["result"][0][0] == document(EMMA, 0)
            assert len(reply["result"][0]) == ServerConfig().default_top_k

    def test_skyrl(self, url: str) -> None:
        body = {"query": EMMA, "topk": 3, "return_scores": True}
        status, reply = post(url + "/retrieve", body)
        assert status == 200
        assert len(reply["result"]) == 1
        assert reply["result"][0][0] == {"document": document(EMMA, 0), "score": 1.0}

    def test_r1_searcher(self, url: str) -> None:
        status, reply = post(url + "/queries", {"queries": [EMMA, WHO], "k": 3})
        assert status == 200
        assert reply["queries"] == [EMMA, WHO]
        cut = [[re.sub(r"^\d+\s+", "", text) for text in row] for row in reply["answers"]]
        assert cut == [BODIES[EMMA][:3], BODIES[WHO][:3]]

    def test_zerosearch(self, url: str) -> None:
        status, reply = post(url + "/retrieve", {"query": EMMA, "top_k": 5})
        assert status == 200
        assert [item["text"] for item in reply] == BODIES[EMMA][:5]

    def test_rllm_by_its_own_base_url(self, url: str) -> None:
        status, reply = post(url + "/rllm/retrieve", {"query": EMMA, "top_k": 2})
        assert status == 200
        assert reply["num_results"] == 2
        assert reply["query"] == EMMA
        first = {"id": "d0", "content": BODIES[EMMA][0], "score": 1.0}
        assert reply["results"][0] == first

    def test_rllm_where_the_server_was_told(self) -> None:
        with BackgroundServer(FakeRetriever(), ServerConfig(ambiguous_dialect="rllm")) as server:
            reply = post(server.url + "/retrieve", {"query": EMMA, "top_k": 2})[1]
        assert [item["content"] for item in reply["results"]] == BODIES[EMMA][:2]

    def test_rllm_with_k(self, url: str) -> None:
        reply = post(url + "/retrieve", {"query": EMMA, "top_k": 10, "k": 1})[1]
        assert len(reply["results"]) == 1


class PeerServer:
    """Answers in a peer's words, and refuses a body its own schema would refuse."""

    def research(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/health":
            return 200, {"status": "healthy", "retrievers": {"total": 2, "available": 1}}
        if path != "/batch_search":
            return 404, {"detail": "Not Found"}
        rows = [[document(q, i) for i in range(body["top_n"])] for q in body["query"]]
        scores = [[1.0 - i / 10 for i, _ in enumerate(row)] for row in rows]
        return 200, [rows, scores] if body["return_score"] else rows

    def search_r1(self, path: str, body: Any) -> tuple[int, Any]:
        if path != "/retrieve":
            return 404, {"detail": "Not Found"}
        if "queries" not in body:
            return 422, {"detail": [{"loc": ["body", "queries"], "msg": "field required"}]}
        rows = [
            [
                {
                    "document": {"id": i, "contents": text, "title": "T", "text": "x"},
                    "score": 1.0 - i / 10,
                }
                for i, text in enumerate(BODIES.get(query, BODIES[EMMA])[: body["topk"]])
            ]
            for query in body["queries"]
        ]
        return 200, {"result": rows}

    def skyrl(self, path: str, body: Any) -> tuple[int, Any]:
        if path != "/retrieve":
            return 404, {"detail": "Not Found"}
        if "query" not in body:
            return 422, {"detail": [{"loc": ["body", "query"], "msg": "field required"}]}
        many = {"queries": [body["query"]], "topk": body.get("topk") or 3}
        return self.search_r1(path, many)

    def r1_searcher(self, path: str, body: Any) -> tuple[int, Any]:
        if path != "/queries":
            return 404, b"<!doctype html><title>404 Not Found</title>"
        texts = {query: BODIES.get(query, BODIES[EMMA]) for query in body["queries"]}
        answers = [
            [f"{i}\t{text}" for i, text in enumerate(texts[query][: body.get("k", 3)])]
            for query in body["queries"]
        ]
        return 200, {"queries": body["queries"], "answers": answers}

    def zerosearch(self, path: str, body: Any) -> tuple[int, Any]:
        if path != "/retrieve" or "query" not in body or "top_k" not in body:
            return 404, {"detail": "Not Found"}
        texts = BODIES.get(body["query"], BODIES[EMMA])
        return 200, [{"text": text} for text in texts[: body["top_k"]]]

    def rllm(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/health":
            return 200, {"status": "healthy", "version": "v2-batching", "corpus_size": 9}
        if path != "/retrieve" or "query" not in body:
            return 404, {"detail": "Not Found"}
        texts = BODIES.get(body["query"], BODIES[EMMA])[: body.get("k") or body.get("top_k", 10)]
        results = [
            {"id": f"doc_{i}", "content": text, "score": 1.0 / i} for i, text in enumerate(texts, 1)
        ]
        return 200, {
            "query": body["query"],
            "method": "dense_batched",
            "results": results,
            "num_results": len(results),
        }


SPEAKERS: list[DialectName] = [
    "research",
    "search-r1",
    "skyrl",
    "r1-searcher",
    "zerosearch",
    "rllm",
]


@pytest.mark.parametrize("spelled", [True, False], ids=["named", "auto"])
@pytest.mark.parametrize("dialect", SPEAKERS)
def test_our_client_reads_every_peers_server(dialect: DialectName, spelled: bool) -> None:
    answer = getattr(PeerServer(), dialect.replace("-", "_"))
    with StubServer(answer) as stub:
        remote = RemoteRetriever(stub.url, dialect if spelled else "auto", retry_window=0)
        found = remote.search([EMMA, WHO, EMMA], 4)
    assert [[p.contents for p in row] for row in found] == [
        BODIES[query][:4] for query in (EMMA, WHO, EMMA)
    ]
    assert all(isinstance(p.id, str) and p.id for row in found for p in row)


def test_ids_and_scores_of_peers() -> None:
    peer = PeerServer()
    with StubServer(peer.search_r1) as stub:
        row = RemoteRetriever(stub.url, "search-r1").search([EMMA], 2)[0]
        assert row == [Passage("0", BODIES[EMMA][0], 1.0), Passage("1", BODIES[EMMA][1], 0.9)]
    with StubServer(peer.r1_searcher) as stub:
        row = RemoteRetriever(stub.url, "r1-searcher").search([EMMA], 2)[0]
        assert [p.id for p in row] == ["0", "1"]


@pytest.mark.parametrize(("spoken", "asked"), list(itertools.permutations(SPEAKERS, 2)))
def test_the_wrong_dialect_is_an_error_and_never_a_result(
    spoken: DialectName, asked: DialectName
) -> None:
    answer = getattr(PeerServer(), spoken.replace("-", "_"))
    with (
        StubServer(answer) as stub,
        pytest.raises(RetrieverUnavailable, match=f"dialect {asked}"),
    ):
        RemoteRetriever(stub.url, asked, retry_window=0).search([EMMA], 2)
