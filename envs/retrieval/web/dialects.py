"""The request and response shapes of the field's retrieval servers, as pure functions.

A dialect turns queries into a JSON body and a JSON reply into passages, and back; server and
client share it. Rule: what does not have the dialect's exact shape is a ``WireError`` that names
the field, never a guess, a default or an empty result.

Document ids are strings on the wire. An integer id is converted only where a peer's server hands
through the rows of the user's corpus file (``search-r1``, ``skyrl``, a whole row in ``rllm``);
elsewhere it is refused.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from research_rl.envs.retrieval.web.json_checks import (
    Json,
    WireError,
    array,
    count,
    fields_of,
    finite_score,
    flag,
    member,
    query_list,
    rows_of,
    source_in,
    string,
)
from research_rl.envs.types import Passage, Results

_NUMBERED_LINE = re.compile(r"(\d+)\t")
_NO_ID = "00"


@dataclass(frozen=True)
class SearchRequest:
    """What a request asks for, whatever its dialect.

    Args:
        queries: at least one.
        top_k: passages wanted for each query; None leaves it to the server.
        scores: whether the reply shall carry scores, where the dialect lets the client choose.
    """

    queries: tuple[str, ...]
    top_k: int | None
    scores: bool = True


class Dialect(ABC):
    """One dialect: its route and its four conversions.

    ``batched`` says whether a request holds many queries or exactly one; ``scored`` whether replies
    can carry scores.
    """

    name: ClassVar[str]
    route: ClassVar[str]
    batched: ClassVar[bool] = True
    scored: ClassVar[bool] = True

    @abstractmethod
    def encode_request(self, queries: Sequence[str], k: int) -> dict[str, Json]:
        """Return the body that asks for the ``k`` best passages of each query, with scores."""

    @abstractmethod
    def decode_request(self, body: Json) -> SearchRequest:
        """Return what ``body`` asks for; raise ``WireError`` where a field is wrong."""

    @abstractmethod
    def encode_response(self, request: SearchRequest, results: Results) -> Json:
        """Return the reply's JSON for the passages of each query of ``request``."""

    @abstractmethod
    def decode_response(self, reply: Json, queries: Sequence[str], k: int) -> Results:
        """Return at most ``k`` passages of each query; raise ``WireError`` for a wrong field."""


class ReSearchDialect(Dialect):
    """``POST /batch_search`` of ReSearch: many queries."""

    name = "research"
    route = "/batch_search"

    def encode_request(self, queries: Sequence[str], k: int) -> dict[str, Json]:
        return {"query": list(queries), "top_n": k, "return_score": True}

    def decode_request(self, body: Json) -> SearchRequest:
        fields = fields_of(body, required=("query",), optional=("top_n", "return_score"))
        return SearchRequest(
            query_list(fields["query"], "query"),
            count(fields.get("top_n", 10), "top_n"),
            flag(fields, "return_score"),
        )

    def encode_response(self, request: SearchRequest, results: Results) -> Json:
        documents = [[_document(passage) for passage in row] for row in results]
        if not request.scores:
            return documents
        return [documents, [[_score(passage) for passage in row] for row in results]]

    def decode_response(self, reply: Json, queries: Sequence[str], k: int) -> Results:
        documents, scores = _pair(reply)
        rows = rows_of(documents, len(queries), "documents")
        score_rows = rows_of(scores, len(queries), "scores")
        return [_scored_row(row, values, k) for row, values in zip(rows, score_rows, strict=True)]


class ReSearchSingleDialect(ReSearchDialect):
    """``POST /search`` of ReSearch: one query."""

    name = "research-single"
    route = "/search"
    batched = False

    def encode_request(self, queries: Sequence[str], k: int) -> dict[str, Json]:
        return {"query": _only(queries), "top_n": k, "return_score": True}

    def decode_request(self, body: Json) -> SearchRequest:
        fields = fields_of(body, required=("query",), optional=("top_n", "return_score"))
        return SearchRequest(
            (string(fields["query"], "query"),),
            count(fields.get("top_n", 10), "top_n"),
            flag(fields, "return_score"),
        )

    def encode_response(self, request: SearchRequest, results: Results) -> Json:
        reply = super().encode_response(request, results)
        return [reply[0][0], reply[1][0]] if request.scores else reply[0]

    def decode_response(self, reply: Json, queries: Sequence[str], k: int) -> Results:
        documents, scores = _pair(reply)
        return [_scored_row(array(documents, "documents"), array(scores, "scores"), k)]


class SearchR1Dialect(Dialect):
    """``POST /retrieve`` of Search-R1, verl, slime and torchtitan: many queries."""

    name = "search-r1"
    route = "/retrieve"

    def encode_request(self, queries: Sequence[str], k: int) -> dict[str, Json]:
        return {"queries": list(queries), "topk": k, "return_scores": True}

    def decode_request(self, body: Json) -> SearchRequest:
        fields = fields_of(body, required=("queries",), optional=("topk", "return_scores"))
        return SearchRequest(
            query_list(fields["queries"], "queries"),
            count(fields.get("topk"), "topk"),
            flag(fields, "return_scores"),
        )

    def encode_response(self, request: SearchRequest, results: Results) -> Json:
        if not request.scores:
            return {"result": [[_document(passage) for passage in row] for row in results]}
        return {
            "result": [
                [{"document": _document(passage), "score": _score(passage)} for passage in row]
                for row in results
            ]
        }

    def decode_response(self, reply: Json, queries: Sequence[str], k: int) -> Results:
        rows = rows_of(member(reply, "result"), len(queries), "result")
        return [[self._passage(item) for item in row[:k]] for row in rows]

    @staticmethod
    def _passage(item: Json) -> Passage:
        document = member(item, "document")
        return _row_passage(document, finite_score(member(item, "score")), None)


class SkyRLDialect(SearchR1Dialect):
    """``POST /retrieve`` of SkyRL: one query, the reply has one inner list."""

    name = "skyrl"
    batched = False

    def encode_request(self, queries: Sequence[str], k: int) -> dict[str, Json]:
        return {"query": _only(queries), "topk": k, "return_scores": True}

    def decode_request(self, body: Json) -> SearchRequest:
        fields = fields_of(body, required=("query",), optional=("topk", "return_scores"))
        return SearchRequest(
            (string(fields["query"], "query"),),
            count(fields.get("topk"), "topk"),
            flag(fields, "return_scores"),
        )


class R1SearcherDialect(Dialect):
    """``POST /queries`` of R1-Searcher: many queries, replies are lines of text without scores.

    Its servers send lines of a table, ``number<tab>text``; its client cuts a leading number off.
    So a numeric id travels in that place, and a text that itself begins with a number is sent
    behind ``00``; any other id cannot travel, and the reader gets a digest of the text.
    """

    name = "r1-searcher"
    route = "/queries"
    scored = False

    def encode_request(self, queries: Sequence[str], k: int) -> dict[str, Json]:
        return {"queries": list(queries), "k": k}

    def decode_request(self, body: Json) -> SearchRequest:
        fields = fields_of(body, required=("queries",), optional=("k",))
        return SearchRequest(
            query_list(fields["queries"], "queries"), count(fields.get("k", 3), "k")
        )

    def encode_response(self, request: SearchRequest, results: Results) -> Json:
        answers = [[self._line(passage) for passage in row] for row in results]
        return {"queries": list(request.queries), "answers": answers}

    def decode_response(self, reply: Json, queries: Sequence[str], k: int) -> Results:
        if member(reply, "queries") != list(queries):
            raise WireError("queries must be returned as they were sent, got others")
        rows = rows_of(member(reply, "answers"), len(queries), "answers")
        return [[self._passage(string(line, "answer")) for line in row[:k]] for row in rows]

    @staticmethod
    def _line(passage: Passage) -> str:
        if passage.id.isascii() and passage.id.isdigit() and passage.id != _NO_ID:
            return f"{passage.id}\t{passage.contents}"
        starts_with_number = re.match(r"\d+\s", passage.contents) is not None
        return f"{_NO_ID}\t{passage.contents}" if starts_with_number else passage.contents

    @staticmethod
    def _passage(line: str) -> Passage:
        numbered = _NUMBERED_LINE.match(line)
        contents = line[numbered.end() :] if numbered else line
        if numbered is None or numbered.group(1) == _NO_ID:
            return Passage(_text_id(contents), contents)
        return Passage(numbered.group(1), contents)


class ZeroSearchDialect(Dialect):
    """``POST /retrieve`` of ZeroSearch: one query, replies hold texts without ids and scores."""

    name = "zerosearch"
    route = "/retrieve"
    batched = False
    scored = False

    def encode_request(self, queries: Sequence[str], k: int) -> dict[str, Json]:
        return {"query": _only(queries), "top_k": k}

    def decode_request(self, body: Json) -> SearchRequest:
        fields = fields_of(body, required=("query", "top_k"), optional=())
        return SearchRequest((string(fields["query"], "query"),), count(fields["top_k"], "top_k"))

    def encode_response(self, request: SearchRequest, results: Results) -> Json:
        return [{"text": passage.contents} for passage in results[0]]

    def decode_response(self, reply: Json, queries: Sequence[str], k: int) -> Results:
        texts = [string(member(item, "text"), "text") for item in array(reply, "the reply")[:k]]
        return [[Passage(_text_id(text), text) for text in texts]]


class RLLMDialect(Dialect):
    """``POST /retrieve`` of rLLM: one query.

    Its server numbers ``id`` by rank (``doc_1``) and may put the whole row of the corpus file, with
    the true id, in the place of ``content``.
    """

    name = "rllm"
    route = "/retrieve"
    batched = False

    def encode_request(self, queries: Sequence[str], k: int) -> dict[str, Json]:
        return {"query": _only(queries), "top_k": k}

    def decode_request(self, body: Json) -> SearchRequest:
        fields = fields_of(body, required=("query",), optional=("top_k", "k"))
        wanted = fields.get("k")
        top_k = fields.get("top_k", 10) if wanted is None else wanted
        return SearchRequest((string(fields["query"], "query"),), count(top_k, "top_k"))

    def encode_response(self, request: SearchRequest, results: Results) -> Json:
        documents = [
            {"id": passage.id, "content": passage.contents, "score": _score(passage)}
            for passage in results[0]
        ]
        return {
            "query": request.queries[0],
            "method": "research-rl",
            "results": documents,
            "num_results": len(documents),
        }

    def decode_response(self, reply: Json, queries: Sequence[str], k: int) -> Results:
        documents = array(member(reply, "results"), "results")
        if member(reply, "num_results") != len(documents):
            raise WireError(f"num_results must be {len(documents)}, got {reply['num_results']!r}")
        if member(reply, "query") != queries[0]:
            raise WireError("query must be returned as it was sent, got another")
        return [[self._passage(item) for item in documents[:k]]]

    @staticmethod
    def _passage(item: Json) -> Passage:
        identity = string(member(item, "id"), "id")
        score = finite_score(member(item, "score"))
        content = member(item, "content")
        if isinstance(content, dict):
            return _row_passage(content, score, identity)
        return Passage(identity, string(content, "content"), score)


DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        ReSearchDialect(),
        ReSearchSingleDialect(),
        SearchR1Dialect(),
        SkyRLDialect(),
        R1SearcherDialect(),
        ZeroSearchDialect(),
        RLLMDialect(),
    )
}


def retrieve_dialect(body: Json, ambiguous: str = "zerosearch") -> Dialect:
    """Return the dialect of a body sent to ``/retrieve``, told by its keys.

    Both ZeroSearch and rLLM send ``{"query", "top_k"}``; ``ambiguous`` names which is meant.
    """
    keys = fields_of(body, required=(), optional=None).keys()
    if "queries" in keys:
        return DIALECTS["search-r1"]
    if "topk" in keys or "return_scores" in keys:
        return DIALECTS["skyrl"]
    if "k" in keys:
        return DIALECTS["rllm"]
    if "top_k" in keys:
        return DIALECTS[ambiguous]
    raise WireError(
        'a body for /retrieve must hold "queries" (Search-R1), "query" with "topk" (SkyRL), '
        f'"top_k" (ZeroSearch) or "k" (rLLM), got the keys {sorted(keys)}'
    )


def _pair(reply: Json) -> tuple[Json, Json]:
    pair = array(reply, "the reply")
    if len(pair) != 2:
        raise WireError(f"a reply with scores must be [documents, scores], got {len(pair)} items")
    return pair[0], pair[1]


def _scored_row(documents: list[Json], scores: list[Json], k: int) -> list[Passage]:
    if len(documents) != len(scores):
        raise WireError(f"{len(documents)} documents must have as many scores, got {len(scores)}")
    return [
        Passage(
            string(member(document, "id"), "id"),
            string(member(document, "contents"), "contents"),
            finite_score(score),
            source_in(document),
        )
        for document, score in zip(documents[:k], scores[:k], strict=True)
    ]


def _row_passage(row: Json, score: float, without_id: str | None) -> Passage:
    """Return the passage of a row of the user's corpus file, whose id may be an integer."""
    contents = string(member(row, "contents"), "contents")
    identity = row.get("id", without_id or _text_id(contents))
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    return Passage(string(identity, "id"), contents, score, source_in(row))


def _only(queries: Sequence[str]) -> str:
    assert len(queries) == 1, "a dialect of single queries is asked one at a time"
    return queries[0]


def _document(passage: Passage) -> dict[str, str]:
    known = {"id": passage.id, "contents": passage.contents}
    return known | ({"source": passage.source} if passage.source else {})


def _score(passage: Passage) -> float:
    return float(passage.score)


def _text_id(contents: str) -> str:
    """An id for a text that came without one: equal texts have equal ids."""
    return "text-" + hashlib.blake2b(contents.encode("utf-8"), digest_size=8).hexdigest()
