"""Search in Milvus: on a cluster, or in this process by milvus-lite, through one class.

``http://host:19530`` names a cluster, a path that ends in ``.db`` a folder of milvus-lite. Passages
lie in the collection, so whoever searches needs no corpus.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from research_rl.envs.retrieval.encoders import NEWEST_RULE, Encoder, Vectors, WordRule, words
from research_rl.envs.retrieval.search.cache import CachedRetriever
from research_rl.envs.types import Passage, Retriever, RetrieverUnavailable

MilvusSearchBy = Literal["dense", "bm25", "hybrid"]
MILVUS_TOKEN = "MILVUS_TOKEN"
"""The environment variable that holds the token of a cluster."""
PASSPORT_ROW = -1
"""The key of the row that says what a collection was made from."""
LONGEST_ID = 1024
"""Bytes of an id, in Milvus's VARCHAR."""
LONGEST_TEXT = 65535
"""Bytes of a passage's text there."""
_MOST = 16384  # results of a query
_QUERIES = 256  # of one request
_RRF, _DEPTH = 60, 100  # of a fusion
_PAUSE = 0.5
_IN_LITE = ".db"
T = TypeVar("T")


def import_pymilvus() -> Any:
    """Return the module ``pymilvus``.

    Raises:
        ImportError: it is not installed; the message is the line that installs it.
    """
    try:
        import pymilvus
    except ImportError as error:
        raise ImportError(
            "pymilvus must be installed for Milvus; do pip install -e '.[milvus]'"
        ) from error
    for name in ("pymilvus", "milvus_lite"):  # they log whole tracebacks of what they raise
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return pymilvus


def is_installed() -> bool:
    """Whether ``pymilvus`` and milvus-lite are there."""
    return all(find_spec(name) is not None for name in ("pymilvus", "milvus_lite"))


class MilvusCollection:
    """A collection and the connection to it, which is made at the first use.

    Args:
        uri: url of a cluster, or a path that ends in ``.db``.
        name: of the collection.
        timeout: seconds of a request.
        attempts: how often it is tried.
    """

    def __init__(self, uri: str, name: str, timeout: float = 30.0, attempts: int = 3) -> None:
        if timeout <= 0 or attempts < 1:
            raise ValueError(
                f"timeout must be above 0 and attempts at least 1, got {timeout} and {attempts}"
            )
        self.uri, self.name, self.timeout, self.attempts = uri, name, timeout, attempts
        self._client: Any = None

    @property
    def is_lite(self) -> bool:
        """Whether milvus-lite keeps it, in this process alone."""
        return self.uri.endswith(_IN_LITE)

    def ask(self, what: str, do: Callable[[Any], T]) -> T:
        """Return what a function makes of the client; it is tried again if Milvus fails.

        Args:
            what: is asked, for the message.
            do: called with a ``MilvusClient``.

        Raises:
            RetrieverUnavailable: it failed as often as it was tried.
        """
        pymilvus = import_pymilvus()
        import grpc

        failures = (pymilvus.MilvusException, grpc.RpcError, OSError)
        for attempt in range(1, self.attempts + 1):
            try:
                if self._client is None:
                    self._client = self._connect(pymilvus)
                return do(self._client)
            except failures as error:
                last = error
                self.disconnect()
                if attempt < self.attempts:
                    time.sleep(_PAUSE * 2 ** (attempt - 1))
        raise RetrieverUnavailable(self._failed(what, last)) from last

    def _failed(self, what: str, error: Exception) -> str:
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        reason = " ".join(str(getattr(error, "message", "") or error).split())
        said = f"Milvus at {self.uri} was asked {times} for {what} and failed: {reason[:300]}"
        if self.is_lite and "Open local milvus" in reason:
            said += (
                "; milvus-lite lets one process in: end the other one, serve the index "
                "(research index serve), or take a cluster (--uri http://HOST:19530)"
            )
        return said

    def _connect(self, pymilvus: Any) -> Any:
        token = {} if self.is_lite else {"token": os.environ.get(MILVUS_TOKEN, "")}
        client = pymilvus.MilvusClient(self.uri, timeout=self.timeout, **token)
        if client.has_collection(self.name, timeout=self.timeout):
            client.load_collection(self.name, timeout=self.timeout)
        return client

    def disconnect(self) -> None:
        """End the connection; the next request makes a new one."""
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close()
            except Exception as error:  # it is of no more use
                logging.getLogger(__name__).debug("closing %s: %s", self.uri, error)

    def close(self) -> None:
        """End the connection; of milvus-lite also its server, which lets other processes in."""
        self.disconnect()
        if self.is_lite:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(self.uri)

    def passport(self) -> dict[str, Any] | None:
        """Return what the collection was made from: empty if it does not say so, None without one.

        A row that is no passage says it, for milvus-lite keeps no description of a collection.
        """

        def read(client: Any) -> str | None:
            if not client.has_collection(self.name, timeout=self.timeout):
                return None
            asked = {"output_fields": ["contents"], "timeout": self.timeout}
            rows = client.query(self.name, filter=f"row == {PASSPORT_ROW}", **asked)
            return str(rows[0]["contents"]) if rows else "{}"

        said = self.ask("its passport", read)
        return None if said is None else dict(json.loads(said))

    def put(self, rows: list[dict[str, Any]]) -> None:
        """Insert rows, or replace those with the same key."""
        what = f"the insertion of {len(rows)} passages"
        self.ask(what, lambda client: client.upsert(self.name, rows, timeout=self.timeout))

    def flush(self) -> None:
        """Wait until what was inserted is on disk."""
        self.ask("a flush", lambda client: client.flush(self.name, timeout=self.timeout))

    def remove(self) -> None:
        """Remove the collection."""
        self.ask("its removal", lambda client: client.drop_collection(self.name))

    def count(self) -> int:
        """Return how many passages it holds."""

        def read(client: Any) -> int:
            rows = client.query(
                self.name, filter="row >= 0", output_fields=["count(*)"], timeout=self.timeout
            )
            return int(rows[0]["count(*)"])

        return self.ask("a count", read)


class MilvusSearch(CachedRetriever):
    """Passages of a Milvus collection: by vectors, by its BM25, or by both.

    The words that BM25 counts are ours (``encoders.terms``), so every script is searched; scores
    are Milvus's. Equal scores keep the order of the corpus.

    Args:
        collection: where the passages lie.
        by: "dense", "bm25", or "hybrid" for both, fused by reciprocal rank (here, since Milvus
            would count hits of score 0 as found).
        encoder: of the vectors; not for "bm25".
        metric: of the vectors, "ip" or "l2".
        width: search parameters, such as {"nprobe": 16}.
        source: a function and its arguments that open the same retriever again, for pickles.
        cache_size: results that are kept for queries that come again; 0 keeps none.
        rule: what a word is, the one that the collection was filled by.
    """

    def __init__(
        self,
        collection: MilvusCollection,
        by: MilvusSearchBy = "dense",
        encoder: Encoder | None = None,
        metric: str = "ip",
        width: dict[str, int] | None = None,
        source: tuple[Callable[..., Retriever], tuple[Any, ...]] | None = None,
        cache_size: int = 0,
        rule: WordRule = NEWEST_RULE,
    ) -> None:
        if by not in ("dense", "bm25", "hybrid"):
            raise ValueError(f"search must be by dense, bm25 or hybrid, got {by!r}")
        if by != "bm25" and encoder is None:
            raise ValueError(f"an index without vectors must be searched by bm25, got {by!r}")
        words("", rule)  # refuses a rule of a later version
        self.collection, self.by, self.encoder, self.metric = collection, by, encoder, metric
        self.width, self._source, self.rule = width or {}, source, rule
        super().__init__(cache_size)

    def __reduce__(self) -> tuple[Callable[..., Retriever], tuple[Any, ...]]:
        if self._source is None:
            raise TypeError("only a Milvus retriever that was opened from a folder can be pickled")
        return self._source

    def __len__(self) -> int:
        return self.collection.count()

    def close(self) -> None:
        """End the connection; a later search makes a new one."""
        self.collection.close()

    def _find(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        if k > _MOST // 2:
            raise ValueError(f"k must be at most {_MOST // 2} for Milvus, got {k}")
        found: list[list[Passage]] = []
        for start in range(0, len(queries), _QUERIES):
            found += self._ask(list(queries[start : start + _QUERIES]), k)
        return found

    def _ask(self, queries: list[str], k: int) -> list[list[Passage]]:
        limit = min(2 * k + 8, _MOST)  # so that ties keep their order
        if self.by == "dense":
            ranked = self._dense(queries, limit)
        elif self.by == "bm25":
            ranked = self._lexical(queries, limit)
        else:
            limit = max(limit, _DEPTH)
            both = zip(self._dense(queries, limit), self._lexical(queries, limit), strict=True)
            ranked = [_fused(one, other) for one, other in both]
        return [
            [passage for passage in row if passage.contents.strip()][:k]
            for row in ([hit.passage for hit in hits] for hits in ranked)
        ]

    def _dense(self, queries: list[str], limit: int) -> list[list[_Hit]]:
        """Search for vectors; a score of 0 is nothing where the encoder says so."""
        assert self.encoder is not None
        vectors = self._vectors(queries)
        sparse = self.metric == "ip" and self.encoder.zero_finds_nothing
        asked = [row for row in range(len(queries)) if vectors[row].any() or not sparse]
        data = [vectors[row].tolist() for row in asked]
        how = {"metric_type": self.metric.upper(), "params": dict(self.width)}
        found = self._search("vector", data, how, limit)
        sign = -1.0 if self.metric == "l2" else 1.0
        hits = (_hits(row, lambda distance: sign * distance, sparse) for row in found)
        return _spread(len(queries), asked, hits)

    def _lexical(self, queries: list[str], limit: int) -> list[list[_Hit]]:
        """Search for words."""
        terms = [milvus_words(query, self.rule) for query in queries]
        asked = [row for row, text in enumerate(terms) if text]
        data = [terms[row] for row in asked]
        found = self._search("sparse", data, {"metric_type": "BM25"}, limit)
        # milvus-lite gives BM25 as a distance, a cluster as a score
        return _spread(len(queries), asked, (_hits(row, abs, True) for row in found))

    def _search(self, field: str, data: list[Any], how: dict[str, Any], limit: int) -> list[Any]:
        if not data:
            return []
        place = self.collection
        options = {"output_fields": ["row", "id", "contents"], "timeout": place.timeout}
        return place.ask(
            f"a search of {len(data)} queries",
            lambda client: list(
                client.search(
                    *(place.name, data),
                    anns_field=field,
                    search_params=how,
                    limit=limit,
                    **options,
                )
            ),
        )

    def _vectors(self, queries: Sequence[str]) -> Vectors:
        assert self.encoder is not None
        vectors = self.encoder.encode_queries(queries)
        if not (finite := np.isfinite(vectors).all(axis=1)).all():
            wrong = queries[int(np.flatnonzero(~finite)[0])]
            raise ValueError(
                f"query vectors must be finite, got NaN or infinity for {wrong[:80]!r}; look at "
                "the encoder and its dtype"
            )
        return vectors


class _Hit(NamedTuple):
    """A passage that was found, and its place in the corpus."""

    row: int
    passage: Passage


def _hits(found: Any, score_of: Callable[[float], float], positive: bool) -> list[_Hit]:
    """Return what a search found, best first, ties in the order of the corpus.

    Args:
        found: hits of Milvus.
        score_of: makes a score of Milvus's distance, the larger the better.
        positive: leave out scores that are not above 0.
    """
    hits = []
    for hit in found:
        entity, score = hit["entity"], score_of(float(hit["distance"]))
        row = int(entity.get("row", hit.get("row")))
        if row != PASSPORT_ROW and not (positive and score <= 0):
            hits.append(_Hit(row, Passage(entity["id"], entity["contents"], score)))
    return sorted(hits, key=lambda hit: (-hit.passage.score, hit.row))


def _spread(count: int, asked: Sequence[int], found: Iterable[list[_Hit]]) -> list[list[_Hit]]:
    """Return the hits of ``count`` queries, of which some were asked."""
    rows: list[list[_Hit]] = [[] for _ in range(count)]
    for row, hits in zip(asked, found, strict=True):
        rows[row] = hits
    return rows


def _fused(*rankings: Sequence[_Hit]) -> list[_Hit]:
    """Return rankings fused by reciprocal rank, as ``RankFusion`` does."""
    scores: dict[int, float] = {}
    passages: dict[int, Passage] = {}
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            passages[hit.row] = hit.passage
            scores[hit.row] = scores.get(hit.row, 0.0) + 1 / (_RRF + rank)
    best = sorted(scores, key=lambda row: -scores[row])
    return [_Hit(row, replace(passages[row], score=scores[row])) for row in best]


def milvus_words(text: str, rule: WordRule = NEWEST_RULE, title_weight: int = 1) -> str:
    """Return the terms of a text as any analyzer of Milvus keeps them apart.

    A term that is not ASCII is written as its bytes: an analyzer would cut it in its own way.

    Args:
        text: a query or a passage.
        rule: what a word is.
        title_weight: how often the words of the first of several lines count.
    """
    title, newline, _ = text.partition("\n")
    terms = words(text, rule) + (words(title, rule) * (title_weight - 1) if newline else [])
    return " ".join(
        term if term.isascii() else "u" + term.encode("utf-8", "surrogatepass").hex()
        for term in terms
    )


def lite_uri(folder: Path) -> str:
    """Return where milvus-lite keeps the collection of an index folder."""
    return str(folder / "milvus.db")
