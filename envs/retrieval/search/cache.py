"""Results of recent queries, kept for those who ask the same again.

The rollouts of a group ask much the same: where all 16 have the same first query, one is searched.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self, TypeAlias

from research_rl.envs.types import Passage, Results, Retriever, check_search

CACHED_RESULTS = 4096
"""How many queries' results a retriever of an index folder keeps, unless told otherwise."""


Ranking: TypeAlias = tuple[list[int], list[float]]
"""Positions of passages in the corpus, best first, and their scores."""


def passages_at(
    passages: Sequence[Passage], places: Sequence[int], scores: Sequence[float]
) -> list[Passage]:
    """Read the passages of a ranking; an empty one is never found."""
    read = zip((passages[place] for place in places), scores, strict=True)
    return [replace(p, score=score) for p, score in read if p.contents.strip()]


def read_best(
    rank: Callable[[int], list[Ranking]], passages: Sequence[Passage], k: int
) -> list[list[Passage]]:
    """Read the ``k`` best passages of each ranking.

    Args:
        rank: returns the rankings, each as long as it is asked to be at most.
        passages: the corpus.
        k: passages of each; where empty ones are among them, more are asked for.
    """
    width = k
    while True:
        ranked = rank(width)
        found = [passages_at(passages, *one)[:k] for one in ranked]
        short = any(
            len(row) < k and len(one[0]) >= width for row, one in zip(found, ranked, strict=True)
        )
        if not short or width >= len(passages):
            return found
        width = min(4 * width, len(passages))


class ResultCache:
    """The results of the latest queries, least recently used out first; thread-safe.

    Args:
        size: queries whose results are kept; 0 keeps none.
    """

    def __init__(self, size: int = 0) -> None:
        if size < 0:
            raise ValueError(f"cache_size must not be negative, got {size}")
        self.size = size
        self._kept: OrderedDict[tuple[str, int], list[Passage]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def answer(
        self, queries: Sequence[str], k: int, find: Callable[[Sequence[str], int], Results]
    ) -> Results:
        """Return the results of all queries; ``find`` is asked once for those that are not kept.

        Args:
            find: gets different queries and ``k``, and returns one list a query.
        """
        known: dict[str, list[Passage]] = {}
        with self._lock:
            for query in dict.fromkeys(queries):
                if (query, k) in self._kept:
                    self._kept.move_to_end((query, k))
                    known[query] = self._kept[query, k]
        if new := [query for query in dict.fromkeys(queries) if query not in known]:
            known |= dict(zip(new, find(new, k), strict=True))
            self._keep([((query, k), known[query]) for query in new])
        return [list(known[query]) for query in queries]

    def _keep(self, results: Sequence[tuple[tuple[str, int], list[Passage]]]) -> None:
        with self._lock:
            self._kept.update(results[-self.size :] if self.size else ())
            while len(self._kept) > self.size:
                self._kept.popitem(last=False)


class CachedRetriever(Retriever):
    """A retriever that keeps the results of its latest queries.

    A subclass searches in ``_find``.

    Args:
        cache_size: results that are kept for queries that come again; 0 keeps none.
    """

    def __init__(self, cache_size: int) -> None:
        self._cache = ResultCache(cache_size)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Each look at env.spec copies the arguments of the environment, an index among them.
        return self

    def search(self, queries: Sequence[str], k: int) -> Results:
        """Return the ``k`` best passages of each query, or all where there are fewer.

        Raises:
            TypeError: ``queries`` is one text, whose letters would be searched for.
            ValueError: ``k`` is less than 1, or a search fails; see the class.
            RetrieverUnavailable: another retriever is asked, and it does not answer.
        """
        check_search(queries, k)
        return self._cache.answer(queries, k, self._find)

    @abstractmethod
    def _find(self, queries: Sequence[str], k: int) -> Results:
        """Search different queries, none of which has kept results."""
