"""Dense retrieval over a FAISS flat index: exact, batched, the same answer every time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from research_rl.envs.retrieval.encoders import Encoder, Vectors
from research_rl.envs.types import Passage, Retriever

Metric = Literal["ip", "l2"]
_BLAS_LOCK = threading.Lock()
_TIE = 1e-5  # relative; single and batched float32 kernels differ by about 1e-6


def import_faiss() -> Any:
    """Return the module ``faiss``.

    Raises:
        ImportError: it is not installed; the message is the line that installs it.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "FAISS must be installed for dense retrieval; do pip install 'research-rl[cpu]', or "
            "'research-rl[gpu]' on a machine with an NVIDIA GPU (one of them, never both: "
            "faiss-cpu and faiss-gpu own the same module)"
        ) from error
    return faiss


def new_index(dim: int, metric: Metric = "ip") -> Any:
    """Return an empty FAISS flat index for vectors of that length."""
    faiss = import_faiss()
    if metric not in ("ip", "l2"):
        raise ValueError(f"metric must be one of 'ip', 'l2', got {metric!r}")
    return faiss.IndexFlatIP(dim) if metric == "ip" else faiss.IndexFlatL2(dim)


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


class DenseRetriever(Retriever):
    """The passages whose vectors lie nearest to the query's.

    Scores closer than 1e-5 of the largest count as ties, and ties keep the order of the corpus:
    so one query gives the same passages alone and in a batch.

    Args:
        index: a FAISS index with one vector a passage.
        passages: the corpus, in the order of the index.
        encoder: what the vectors were made with.
        source: a function and its arguments that open the same retriever again: a pickle then
            holds these and no vectors. None pickles everything.
    """

    def __init__(
        self,
        index: Any,
        passages: Sequence[Passage],
        encoder: Encoder,
        source: tuple[Callable[..., Retriever], tuple[Any, ...]] | None = None,
    ) -> None:
        if index.ntotal != len(passages):
            raise ValueError(
                f"index must hold one vector for each passage, got {index.ntotal} vectors for "
                f"{len(passages)} passages; build the index again"
            )
        if not len(passages):
            raise ValueError("passages must not be empty")
        self.index, self.passages, self.encoder, self._source = index, passages, encoder, source

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

    def __deepcopy__(self, memo: dict[int, Any]) -> DenseRetriever:
        return self

    def __reduce__(self) -> tuple[Callable[..., Retriever], tuple[Any, ...]]:
        return self._source or (type(self), (self.index, self.passages, self.encoder))

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return the ``k`` best passages of each query (all of them if the corpus has fewer).

        A passage's score is the inner product, or minus the squared distance. Queries that
        occur several times are searched once.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        distinct = list(dict.fromkeys(queries))
        if not distinct:
            return []
        scores, ids = self._nearest(self.encoder.encode_queries(distinct), min(k, len(self)))
        found = {
            query: [
                Passage(passage.id, passage.contents, score)
                for passage, score in zip(map(self.passages.__getitem__, row), best, strict=True)
            ]
            for query, row, best in zip(distinct, ids.tolist(), scores.tolist(), strict=True)
        }
        return [list(found[query]) for query in queries]

    def _nearest(self, vectors: Vectors, k: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        """Return scores and positions (n, k), best first, ties by position.

        A few more than ``k`` are fetched; rows whose last one still ties with the k-th are
        searched again, sixteen times as wide.
        """
        scores = np.zeros((len(vectors), k), np.float32)
        ids = np.tile(np.arange(k), (len(vectors), 1))
        nonzero = vectors.any(axis=1)  # a query without a known word ties with everything
        todo = np.flatnonzero(nonzero if self._inner else np.ones_like(nonzero))
        width = min(2 * k + 8, len(self))
        while len(todo):
            found, places = self._search(vectors[todo], width)
            scale = np.abs(found).max(axis=1) if self._inner else self._norms(vectors[todo], found)
            tie = _TIE * scale[:, None]
            group = np.zeros(places.shape, np.int64)
            group[:, 1:] = np.cumsum(found[:, :-1] - found[:, 1:] > tie, axis=1)
            order = np.lexsort((places, group), axis=1)[:, :k]
            ids[todo] = np.take_along_axis(places, order, axis=1)
            scores[todo] = np.take_along_axis(found, order, axis=1)
            cut = group[:, -1] == group[:, k - 1]
            todo = todo[cut] if width < len(self) else todo[:0]
            width = min(16 * width, len(self))
        return scores, ids

    @property
    def _inner(self) -> bool:
        return bool(self.index.metric_type == import_faiss().METRIC_INNER_PRODUCT)

    @staticmethod
    def _norms(vectors: Vectors, found: Vectors) -> Vectors:
        """Scale of rounding in squared distances: that of the norms they are made from."""
        scale: Vectors = np.square(vectors).sum(axis=1) + np.abs(found).max(axis=1)
        return scale

    def _search(self, vectors: Vectors, width: int) -> tuple[Vectors, npt.NDArray[np.int64]]:
        with _blas_for(len(vectors)):
            distances, places = self.index.search(np.ascontiguousarray(vectors), width)
        return (distances if self._inner else -distances), places


@contextmanager
def _blas_for(num_queries: int) -> Iterator[None]:
    """Let FAISS multiply matrices for several queries at once.

    Its own threshold turns to BLAS at some hundred queries only; at 64 queries of 384 numbers
    that costs a factor of seven. The threshold is global to the process, hence the lock.
    """
    if num_queries == 1:
        yield
        return
    faiss = import_faiss()
    with _BLAS_LOCK:
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 1
        try:
            yield
        finally:
            faiss.cvar.distance_compute_blas_threshold = before
