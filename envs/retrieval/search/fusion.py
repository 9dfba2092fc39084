"""Rank fusion: what several retrievers rank high between them comes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from research_rl.envs.retrieval.search.bm25 import BM25Retriever
from research_rl.envs.retrieval.search.cache import (
    CACHED_RESULTS,
    CachedRetriever,
    Ranking,
    read_best,
)
from research_rl.envs.retrieval.search.dense import DenseRetriever
from research_rl.envs.types import Passage, Retriever, search_checked


class RankFusion(CachedRetriever):
    """Reciprocal rank fusion: a passage scores the sum of weight / (k + rank) over retrievers.

    Needs no comparable scores, only ranks (Cormack, Clarke and Buettcher 2009,
    https://doi.org/10.1145/1571941.1572114). Passages are told apart by id, so all retrievers must
    search the same corpus. Ties go to the retriever named first. Passages of score 0 that
    only fill up a ranking, as BM25's do behind the last one that shares a word with the query,
    count as not found.

    A search raises RetrieverUnavailable where one of the retrievers does not answer, and ValueError
    where two have different texts for one id.

    Args:
        retrievers: at least two retrievers.
        weights: one a retriever; None weighs all alike.
        k: the larger, the less the first ranks stand out.
        depth: passages asked of each retriever, at least as many as are wanted.
        cache_size: results that are kept for queries that come again; 0 keeps none.
    """

    source: tuple[Callable[..., Retriever], tuple[Any, ...]] | None = None

    def __init__(
        self,
        retrievers: Sequence[Retriever],
        weights: list[float] | None = None,
        k: int = 60,
        depth: int = 100,
        cache_size: int = CACHED_RESULTS,
    ) -> None:
        weights = [1.0] * len(retrievers) if weights is None else list(weights)
        if len(retrievers) < 2:
            raise ValueError(f"retrievers must be at least two, got {len(retrievers)}")
        if len(weights) != len(retrievers) or min(weights) <= 0:
            raise ValueError(
                f"weights must be positive, one for each of {len(retrievers)} retrievers, "
                f"got {weights}"
            )
        if k < 0 or depth < 1:
            raise ValueError(f"k must be >= 0 and depth >= 1, got k={k}, depth={depth}")
        self.retrievers = list(retrievers)
        self.weights, self.k, self.depth = weights, k, depth
        super().__init__(cache_size)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self.source is not None:  # of an index folder, which opens the same one again
            return self.source
        return type(self), (self.retrievers, self.weights, self.k, self.depth, self._cache.size)

    def _find(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        depth = max(k, self.depth)
        if (corpus := self._shared_corpus()) is not None:  # k texts are read, not depth
            ranked = [one.places(queries, depth) for one in self._placing()]
            rows_of = zip(*ranked, strict=True)
            fused = [fused_places(rows, self.weights, self.k) for rows in rows_of]
            return read_best(lambda n: [(p[:n], s[:n]) for p, s in fused], corpus, k)
        found = []
        for one in self.retrievers:
            known = isinstance(one, (BM25Retriever, DenseRetriever))
            found.append([_count_found(row, known) for row in search_checked(one, queries, depth)])
        rows = zip(*found, strict=True)
        return [self._fuse(rankings)[:k] for rankings in rows]

    def _placing(self) -> list[BM25Retriever | DenseRetriever]:
        kinds = (BM25Retriever, DenseRetriever)
        own = (BM25Retriever._find, DenseRetriever._find)  # a subclass may search otherwise
        return [one for one in self.retrievers if isinstance(one, kinds) and type(one)._find in own]

    def _shared_corpus(self) -> Sequence[Passage] | None:
        """The corpus, if all retrievers rank the rows of one and the same."""
        placing = self._placing()
        same = len({id(one.passages) for one in placing}) == 1
        return placing[0].passages if same and len(placing) == len(self.retrievers) else None

    def _fuse(self, rankings: Sequence[tuple[list[Passage], int]]) -> list[Passage]:
        """Return the fused ranking.

        Args:
            rankings: of each retriever its passages, best first, and how many of them it found.
        """
        scores: dict[str, float] = {}
        passages: dict[str, Passage] = {}
        for weight, (ranking, found) in zip(self.weights, rankings, strict=True):
            for rank, passage in enumerate(ranking, 1):
                first = passages.setdefault(passage.id, passage)
                if first.contents != passage.contents:
                    raise ValueError(
                        f"retrievers must search the same corpus, got two texts of passage "
                        f"{passage.id!r}: {first.contents[:60]!r} and {passage.contents[:60]!r}"
                    )
                share = weight / (self.k + rank) if rank <= found else 0.0
                scores[passage.id] = scores.get(passage.id, 0.0) + share
        best = sorted(scores, key=lambda identity: -scores[identity])
        return [replace(passages[i], score=scores[i]) for i in best]


def fused_places(rankings: Sequence[Ranking], weights: Sequence[float], k: int) -> Ranking:
    """Return the fused ranking of rankings of one corpus."""
    scores: dict[int, float] = {}
    for weight, (places, _) in zip(weights, rankings, strict=True):
        for rank, place in enumerate(places, 1):
            scores[place] = scores.get(place, 0.0) + weight / (k + rank)
    best = sorted(scores, key=lambda place: -scores[place])
    return best, [scores[place] for place in best]


def _count_found(ranking: list[Passage], known: bool) -> tuple[list[Passage], int]:
    """Return a ranking and how many passages it found: those of score 0 at its end only fill it up.

    Args:
        ranking: best first.
        known: whether zeros throughout mean that nothing was found; a server may have no scores.
    """
    if not ranking or ranking[-1].score != 0 or not (known or ranking[0].score > 0):
        return ranking, len(ranking)
    return ranking, sum(passage.score > 0 for passage in ranking)
