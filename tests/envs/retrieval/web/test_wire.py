"""Every dialect carries queries and passages without loss, and refuses any other shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs.retrieval.web.dialects import DIALECTS, SearchRequest, retrieve_dialect
from research_rl.envs.retrieval.web.json_checks import (
    WireError,
    check_queries,
    dump_json,
    parse_json,
)
from research_rl.envs.types import Passage

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
PASSAGE = st.builds(
    Passage,
    id=st.one_of(st.text("abc019", min_size=1, max_size=4), TEXT),
    contents=st.one_of(TEXT, TEXT.map(lambda text: "12\t" + text), TEXT.map("7 up".__add__)),
    score=st.floats(-1e6, 1e6),
)
WITH_ID = ("research", "research-single", "search-r1", "skyrl", "rllm")


WITH_SOURCE = ("research", "research-single", "search-r1", "skyrl")


def through_json(value: Any) -> Any:
    return parse_json(dump_json(value))


@pytest.mark.parametrize("name", DIALECTS)
@given(queries=st.lists(TEXT, min_size=1, max_size=3), k=st.integers(1, 50))
def test_a_request_survives_the_wire(name: str, queries: list[str], k: int) -> None:
    dialect = DIALECTS[name]
    queries = queries if dialect.batched else queries[:1]
    request = dialect.decode_request(through_json(dialect.encode_request(queries, k)))
    assert request.queries == tuple(queries)
    assert request.top_k == k
    assert request.scores


@pytest.mark.parametrize("name", WITH_SOURCE)
def test_where_a_passage_stands_survives_the_wire(name: str) -> None:
    dialect = DIALECTS[name]
    rows = [[Passage("7", "Oslo\nA city.", 1.0, "guide.md#char=3,9"), Passage("8", "B\nC", 0.5)]]
    reply = dialect.encode_response(SearchRequest(("q",), 3), rows)
    assert dialect.decode_response(through_json(reply), ("q",), 3) == rows
    assert str(reply).count("source") == 1, "nothing is sent where nothing is known"


@pytest.mark.parametrize("name", DIALECTS)
@given(rows=st.lists(st.lists(PASSAGE, max_size=3), min_size=1, max_size=3))
def test_passages_survive_the_wire(name: str, rows: list[list[Passage]]) -> None:
    dialect = DIALECTS[name]
    rows = rows if dialect.batched else rows[:1]
    queries = tuple(f"q{i}" for i in range(len(rows)))
    reply = through_json(dialect.encode_response(SearchRequest(queries, 3), rows))
    received = dialect.decode_response(reply, queries, 3)
    if name in WITH_ID:
        assert received == rows
    else:
        assert [[p.contents for p in row] for row in received] == [
            [p.contents for p in row] for row in rows
        ]


def test_no_more_than_k_passages_are_taken() -> None:
    rows = [[Passage(str(i), "text", 1.0) for i in range(9)]]
    for dialect in DIALECTS.values():
        reply = through_json(dialect.encode_response(SearchRequest(("q",), 9), rows))
        assert len(dialect.decode_response(reply, ["q"], 2)[0]) == 2


def test_r1_searcher_keeps_numeric_ids_and_leading_numbers() -> None:
    """Its client cuts ``^\\d+\\s+`` off each answer; a title that is a number must outlive that."""
    dialect = DIALECTS["r1-searcher"]
    rows = [[Passage("17", "Emma\nnovel"), Passage("x", "1984\nnovel"), Passage("y", "Emma\nb")]]
    reply = dialect.encode_response(SearchRequest(("q",), 3), rows)
    assert reply["answers"][0] == ["17\tEmma\nnovel", "00\t1984\nnovel", "Emma\nb"]
    received = dialect.decode_response(reply, ["q"], 3)[0]
    assert received[0] == Passage("17", "Emma\nnovel")
    assert received[1].contents == "1984\nnovel"


def test_texts_without_ids_get_an_id_that_depends_on_the_text_alone() -> None:
    dialect = DIALECTS["zerosearch"]
    first, second, third = dialect.decode_response(
        [{"text": "a"}, {"text": "b"}, {"text": "a"}], ["q"], 3
    )[0]
    assert first.id == third.id != second.id


def test_retrieve_is_told_by_its_keys() -> None:
    bodies = {
        "search-r1": {"queries": ["q"], "topk": 3, "return_scores": True},
        "skyrl": {"query": "q", "topk": 3},
        "rllm": {"query": "q", "k": 3},
        "zerosearch": {"query": "q", "top_k": 3},
    }
    for name, body in bodies.items():
        assert retrieve_dialect(body).name == name
    assert retrieve_dialect(bodies["zerosearch"], ambiguous="rllm").name == "rllm"
    for body in ({"query": "q"}, {}, [], "q", None):
        with pytest.raises(WireError, match="must"):
            retrieve_dialect(body)


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("research", {"query": "q"}, "query must be an array, got a string"),
        ("research-single", {"query": ["q"]}, "query must be a string, got an array"),
        ("research", {"query": []}, "at least one"),
        ("research", {"query": ["q"], "topk": 3}, r"got one with \['topk'\]"),
        ("research", {"top_n": 3}, r"got one without \['query'\]"),
        ("research", {"query": ["q"], "top_n": "3"}, "positive integer"),
        ("research", {"query": ["q"], "return_score": 1}, "true or false"),
        ("search-r1", {"queries": ["q", 7]}, r"queries\[1\] must be a string, got an integer"),
        ("search-r1", {"queries": ["q"], "topk": 0}, "positive integer"),
        ("search-r1", {"queries": ["q"], "topk": True}, "positive integer"),
        ("skyrl", {"query": None, "topk": 3}, "query must be a string, got null"),
        ("r1-searcher", {"queries": "q"}, "queries must be an array"),
        ("zerosearch", {"query": "q"}, "top_k"),
        ("rllm", {"query": "\ud800"}, "lone surrogate"),
        ("rllm", ["q"], "must be a JSON object, got an array"),
    ],
)
def test_a_wrong_request_is_refused_by_name(name: str, body: Any, message: str) -> None:
    with pytest.raises(WireError, match=message):
        DIALECTS[name].decode_request(body)


def test_open_fields_take_each_servers_default() -> None:
    assert DIALECTS["research"].decode_request({"query": ["q"]}).top_k == 10
    assert DIALECTS["search-r1"].decode_request({"queries": ["q"], "topk": None}).top_k is None
    assert DIALECTS["r1-searcher"].decode_request({"queries": ["q"]}).top_k == 3
    assert DIALECTS["rllm"].decode_request({"query": "q"}).top_k == 10
    assert DIALECTS["rllm"].decode_request({"query": "q", "top_k": 4, "k": 2}).top_k == 2


DOC = {"id": "1", "contents": "text"}


@pytest.mark.parametrize(
    ("name", "reply", "message"),
    [
        ("research", [[DOC]], "documents, scores"),
        ("research", [[[DOC]], [[0.5]], []], "got 3 items"),
        ("research", [[[DOC], [DOC]], [[0.5], [0.5]]], "each of 1 queries, got 2"),
        ("research", [[[DOC]], [[]]], "as many scores"),
        ("research", [[[DOC]], [["high"]]], "finite number"),
        ("research", [[[{"id": 1, "contents": "text"}]], [[0.5]]], "id must be a string"),
        ("research", [[[{"id": "1"}]], [[0.5]]], 'must hold "contents"'),
        ("research", {"detail": "oops"}, "must be an array, got an object"),
        ("search-r1", {"result": []}, "each of 1 queries, got 0"),
        ("search-r1", {"result": [[DOC]]}, 'must hold "document"'),
        ("search-r1", {"result": [[{"document": DOC, "score": None}]]}, "finite number"),
        ("search-r1", {"result": [[{"document": DOC}]]}, 'must hold "score"'),
        ("search-r1", {"result": [{"document": DOC, "score": 1.0}]}, "must be an array"),
        ("skyrl", {"error": "x"}, 'must hold "result"'),
        ("r1-searcher", {"queries": ["other"], "answers": [["a"]]}, "as they were sent"),
        ("r1-searcher", {"queries": ["q"], "answers": [[1]]}, "answer must be a string"),
        ("zerosearch", [{"contents": "text"}], 'must hold "text"'),
        ("rllm", {"query": "q", "results": [], "num_results": 1}, "num_results must be 0"),
        ("rllm", {"query": "p", "results": [], "num_results": 0}, "as it was sent"),
    ],
)
def test_a_wrong_reply_is_refused_by_name(name: str, reply: Any, message: str) -> None:
    with pytest.raises(WireError, match=message):
        DIALECTS[name].decode_response(reply, ["q"], 5)


@pytest.mark.parametrize("name", ["search-r1", "skyrl"])
def test_integer_ids_of_a_corpus_file_become_strings(name: str) -> None:
    reply = {"result": [[{"document": {"id": 7, "contents": "text", "title": "t"}, "score": 1}]]}
    assert DIALECTS[name].decode_response(reply, ["q"], 5) == [[Passage("7", "text", 1.0)]]
    reply["result"][0][0]["document"]["id"] = True
    with pytest.raises(WireError, match="id must be a string, got a boolean"):
        DIALECTS[name].decode_response(reply, ["q"], 5)


def test_rllm_may_send_the_row_of_the_corpus_file() -> None:
    def reply(content: Any) -> Any:
        results = [{"id": "doc_1", "content": content, "score": 1.0}]
        return {"query": "q", "results": results, "num_results": 1}

    def received(content: Any) -> Passage:
        return DIALECTS["rllm"].decode_response(reply(content), ["q"], 5)[0][0]

    assert received("text") == Passage("doc_1", "text", 1.0)
    assert received({"id": 7, "contents": "text"}) == Passage("7", "text", 1.0)
    assert received({"contents": "text"}) == Passage("doc_1", "text", 1.0)
    with pytest.raises(WireError, match="content must be a string, got null"):
        received(None)


def test_documents_of_a_bm25_server_may_lack_an_id() -> None:
    reply = {"result": [[{"document": {"contents": "text", "text": "text"}, "score": 1.5}]]}
    passage = DIALECTS["search-r1"].decode_response(reply, ["q"], 5)[0][0]
    assert passage.contents == "text"
    assert passage.id.startswith("text-")


@pytest.mark.parametrize("data", [b"", b"<html>", b'{"a": ', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="must be JSON"):
        parse_json(data)


def test_infinite_scores_do_not_leave() -> None:
    with pytest.raises(WireError, match="finite"):
        dump_json([float("nan")])
    assert json.loads(dump_json({"é": "😀"})) == {"é": "😀"}


def test_queries_are_checked_with_their_position() -> None:
    check_queries(["a", " \n"])
    with pytest.raises(WireError, match="query 1 must be a string"):
        check_queries(["a", 3])  # type: ignore[list-item]
