"""Dense retrieval over a FAISS index, batched; over a flat one exact and the same every time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from research_rl.envs.retrieval.encoders import Encoder, Vectors
from research_rl.envs.retrieval.search.cache import CachedRetriever, Ranking, read_best
from research_rl.envs.retrieval.vectors import (
    Metric,
    blas_for,
    import_faiss,
    is_exact,
    is_inner,
    new_index,
    search_everywhere,
)
from research_rl.envs.types import Passage, Retriever

__all__ = ["DenseRetriever", "Metric", "add_passages", "import_faiss", "new_index"]
_TIE = 1e-5  # relative; single and batched float32 kernels differ by about 1e-6


def add_passages(
    index: Any, contents: Iterable[str], encoder: Encoder, batch_size: int = 1024
) -> Iterator[int]:
    """Encode texts and add them to an index, yielding the size of each batch done."""
    batch: list[str] = []
    for text in contents:
        batch.append(text)
        if len(batch) == batch_size:
            index.add(encoder.encode_passages(batch))
            yield len(batch)
            batch = []
    if batch:
        index.add(encoder.encode_passages(batch))
        yield len(batch)


class DenseRetriever(CachedRetriever):
    """The passages whose vectors lie nearest to the query's.

    A passage's score is the inner product, or minus the squared distance.
    Scores closer than 1e-5 of the largest count as ties, and ties keep the order of the corpus:
    so over a flat index one query gives the same passages alone and in a batch.

    Args:
        index: a FAISS index with one vector a passage.
        passages: the corpus, in the order of the index.
        encoder: what the vectors were made with.
        source: a function and its arguments that open the same retriever again: a pickle then
            holds these and no vectors. None pickles everything.
        cache_size: results that are kept for queries that come again; 0 keeps none.
    """

    def __init__(
        self,
        index: Any,
        passages: Sequence[Passage],
        encoder: Encoder,
        source: tuple[Callable[..., Retriever], tuple[Any, ...]] | None = None,
        cache_size: int = 0,
    ) -> None:
        if index.ntotal != len(passages):
            raise ValueError(
                f"index must hold one vector for each passage, got {index.ntotal} vectors for "
                f"{len(passages)} passages; build the index again"
            )
        if not len(passages):
            raise ValueError("passages must not be empty")
        self.index, self.passages, self.encoder, self._source = index, passages, encoder, source
        super().__init__(cache_size)

    @classmethod
    def from_passages(
        cls, passages: Sequence[Passage], encoder: Encoder, metric: Metric = "ip"
    ) -> DenseRetriever:
        """Fit the encoder on passages, index them in memory and return the retriever."""
        contents = [passage.contents for passage in passages]
        encoder.fit(contents)
        index = new_index(encoder.dim, metric)
        for _ in add_passages(index, contents, encoder):
            pass
        return cls(index, passages, encoder)

    def __len__(self) -> int:
        return len(self.passages)

    def __reduce__(self) -> tuple[Callable[..., Retriever], tuple[Any, ...]]:
        own = (self.index, self.passages, self.encoder, None, self._cache.size)
        return self._source or (type(self), own)

    def _find(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return read_best(lambda width: self.places(queries, width), self.passages, k)

    def places(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return where in the corpus what would be found stands, without reading it.

        Raises:
            ValueError: the encoder gave NaN or infinity, for which FAISS would find nothing.
        """
        vectors = self.encoder.encode_queries(queries)
        if not (finite := np.isfinite(vectors).all(axis=1)).all():
            wrong = queries[int(np.flatnonzero(~finite)[0])]
            raise ValueError(
                f"query vectors must be finite, got NaN or infinity for {wrong[:80]!r}; look at "
                "the encoder and its dtype"
            )
        scores, ids = self._nearest(vectors, min(k, len(self)))
        found = ids >= 0  # a graph may reach fewer than k
        if self._inner and self.encoder.zero_finds_nothing:
            # what is left after rounding is nothing
            found &= scores > _TIE * np.maximum(scores.max(axis=1, keepdims=True), 0)
        return [
            (row[kept].tolist(), best[kept].tolist())
            for row, best, kept in zip(ids, scores, found, strict=True)
        ]

    def _nearest(self, vectors: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Return scores and positions (n, k), best first, ties by position.

        A few more than ``k`` are fetched; in an exact index, rows whose last one still ties with
        the k-th are searched again, sixteen times as wide.
        """
        scores = np.zeros((len(vectors), k), np.float32)
        ids = np.tile(np.arange(k), (len(vectors), 1))
        nonzero = vectors.any(axis=1)  # a query without a known word ties with everything
        todo = np.flatnonzero(nonzero if self._inner else np.ones_like(nonzero))
        width = min(2 * k + 8, len(self))
        while len(todo):
            found, places = self._search(vectors[todo], width)
            sizes = np.where(places < 0, 0, np.abs(found)).max(axis=1)
            if not self._inner:  # rounding of squared distances is that of the squared norms
                sizes += np.square(vectors[todo]).sum(axis=1)
            group = np.zeros(places.shape, np.int64)
            gaps = found[:, :-1] - found[:, 1:] > _TIE * sizes[:, None]
            group[:, 1:] = np.cumsum(gaps | (places[:, 1:] < 0), axis=1)
            order = np.lexsort((places, group), axis=1)[:, :k]
            ids[todo] = np.take_along_axis(places, order, axis=1)
            scores[todo] = np.take_along_axis(found, order, axis=1)
            cut = group[:, -1] == group[:, k - 1]
            todo = todo[cut] if width < len(self) and is_exact(self.index) else todo[:0]
            width = min(16 * width, len(self))
        return scores, ids

    @property
    def _inner(self) -> bool:
        return is_inner(self.index)

    def _search(self, vectors: Vectors, width: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Return scores and positions (n, width).

        Where the lists of an IVF index that were searched hold too few vectors, all are searched.
        """
        # One call for all queries: on a busy machine 256 single searches took 1,930 ms with two
        # OpenMP threads, and 56 ms with one.
        vectors = np.ascontiguousarray(vectors)
        with blas_for(len(vectors)):
            distances, places = self.index.search(vectors, width)
            short = np.flatnonzero(places[:, -1] < 0)
            if len(short):
                distances[short], places[short] = search_everywhere(
                    self.index, vectors[short], width
                )
        return (distances if self._inner else -distances), places
