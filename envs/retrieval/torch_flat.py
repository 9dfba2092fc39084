"""Exact search through torch, on CUDA devices or the CPU: the search to take on a GPU.

Only an IVF index that is too large to be scored whole is better served by
``faiss_gpu.GpuFaissRetriever``, which needs a FAISS built for CUDA.

Vectors lie on the device in half precision. A blocked scan there finds candidates, which are scored
again from the original vectors. The result is proven: a vector that was left out cannot score more
than the last candidate's rough score plus a bound of all rounding, and a query whose k-th best does
not beat that is scanned again for four times as many candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from research_rl.envs.retrieval.encoders import Vectors
from research_rl.envs.retrieval.index import load_retriever
from research_rl.envs.retrieval.search import CACHED_RESULTS, DenseRetriever
from research_rl.envs.retrieval.vectors import (
    NOBODY,
    Metric,
    Places,
    ProductDtype,
    as_faiss,
    best,
    check_room,
    exact_scores,
    import_faiss,
    input_rounding,
    merge,
    output_rounding,
    pick_devices,
    pick_dtype,
    product,
    widened,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

_ROWS = 1 << 14  # vectors read at a time
_QUERIES = 512  # queries scanned at a time
_OVERSAMPLE = 4
_METRIC_TYPES: dict[str, int] = {"ip": 0, "l2": 1}  # faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2


@dataclass(frozen=True)
class _Shard:
    """The part of the vectors that one device holds.

    Args:
        first: position of its first vector.
        vectors: (n, D) in the scan's dtype, scaled.
        half_norms: (n,) float32, half of the squared lengths; None for inner products.
    """

    first: int
    vectors: Tensor
    half_norms: Tensor | None


class TorchFlatIndex:
    """Exact nearest neighbours, with the part of FAISS's interface that retrievers use.

    ``search`` finds what ``faiss.IndexFlatIP`` or ``IndexFlatL2`` finds in the same vectors, up to
    the rounding of FAISS's own float32 sums; equal scores come by position.

    Args:
        vectors: (N, D) float32, or float16 if nothing better is kept: then the result is exact for
            those rounded vectors only, and ``full_precision`` is False. A memory map will do; the
            array is not copied.
        metric: "ip" (inner product) or "l2".
        device: a torch device or several, each of which gets an equal share; "auto" is the first
            CUDA device, or the CPU where there is none.
        dtype: of the scan; "auto" is float16 on CUDA (finer than bfloat16, and vectors are scaled
            so that it cannot overflow) and bfloat16 on the CPU.
        block_mb: MiB that the scores of one block may take.

    Raises:
        ValueError: the vectors are not finite, or a device is missing or too small.
    """

    def __init__(
        self,
        vectors: npt.NDArray[np.floating],
        metric: Metric = "ip",
        device: str | Sequence[str] = "auto",
        dtype: ProductDtype = "auto",
        block_mb: int = 256,
    ) -> None:
        if metric not in _METRIC_TYPES:
            raise ValueError(f"metric must be one of 'ip', 'l2', got {metric!r}")
        if vectors.ndim != 2 or not len(vectors) or vectors.dtype not in (np.float32, np.float16):
            raise ValueError(
                "vectors must be float32 or float16 of shape (N, D) with N at least 1, got "
                f"{vectors.dtype} of shape {vectors.shape}"
            )
        if block_mb < 1:
            raise ValueError(f"block_mb must be at least 1, got {block_mb}")
        self.vectors, self.metric_type = vectors, _METRIC_TYPES[metric]
        self.ntotal, self.d = vectors.shape
        self.full_precision = vectors.dtype == np.float32
        self._inner = metric == "ip"
        self._block = block_mb << 20
        devices = pick_devices(device)
        self._dtype = pick_dtype(dtype, devices[0])
        norms = _norms(vectors)
        self._scale = 2.0 ** -np.ceil(np.log2(max(float(norms.max()), 1e-30)))
        self._longest = float(norms.max()) * self._scale
        self._error = 0.0  # largest distance of a scaled vector from its rounded self
        need = vectors.size * self._dtype.itemsize / len(devices)
        for one in devices:
            check_room(one, need)
        self._shards = list(self._make_shards(devices, norms))

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Places]:
        """Return FAISS's distances or inner products, and positions, both (Q, k), best first.

        Positions are -1 where the index holds fewer than ``k`` vectors.

        Args:
            queries: (Q, D) float32.
            k: at least 1.
        """
        if k < 1 or queries.ndim != 2 or queries.shape[1] != self.d:
            raise ValueError(
                f"queries must have shape (Q, {self.d}) and k be at least 1, "
                f"got {queries.shape} and k={k}"
            )
        if not np.isfinite(queries).all():
            raise ValueError("queries must be finite, got NaN or infinity; look at the encoder")
        scores = np.full((len(queries), k), -np.inf, np.float32)
        places = np.full((len(queries), k), NOBODY, np.int64)
        todo, width = np.arange(len(queries)), _OVERSAMPLE * k
        while len(todo) and width < self.ntotal:
            left = []
            for start in range(0, len(todo), _QUERIES):
                rows = todo[start : start + _QUERIES]
                scores[rows], places[rows], proven = self._from_candidates(queries[rows], k, width)
                left.append(rows[~proven])
            todo, width = np.concatenate(left), 4 * width
        for row in todo:
            scores[row], places[row] = self._among_all(queries[row : row + 1], k)
        return as_faiss(scores, self._inner), places

    def _from_candidates(
        self, queries: Vectors, k: int, width: int
    ) -> tuple[Vectors, Places, npt.NDArray[np.bool_]]:
        """Return scores, positions (Q, k) and whether they are proven to be the best (Q,)."""
        rough, places, bound = self._scan(queries, width)
        exact = exact_scores(queries, places, self.vectors.__getitem__, self._inner)
        scores, chosen = best(exact, places, k)
        kth = np.partition(exact, -k, axis=1)[:, -k] * self._scale**2
        if not self._inner:  # -|q - x|^2 = 2 (q.x - |x|^2 / 2) - |q|^2
            kth = (kth + np.square(queries.astype(np.float64) * self._scale).sum(axis=1)) / 2
        return scores, chosen, kth > rough[:, -1] + bound

    def _among_all(self, query: Vectors, k: int) -> tuple[Vectors, Places]:
        """Return scores and positions (1, k) of one query (1, D), with no scan before."""
        scores = np.zeros((1, 0))
        places = np.zeros((1, 0), np.int64)
        for start in range(0, self.ntotal, _ROWS):
            block = np.arange(start, min(start + _ROWS, self.ntotal))[None]
            found = exact_scores(query, block, self.vectors.__getitem__, self._inner)
            both = np.concatenate([scores, found], 1), np.concatenate([places, block], 1)
            few, places = best(*both, min(k, both[0].shape[1]))
            scores = few.astype(np.float64)
        return best(scores, places, k)

    def _scan(self, queries: Vectors, width: int) -> tuple[Vectors, Places, Vectors]:
        """Return rough scores and positions (Q, width), best first, and their error bounds (Q,)."""
        import torch

        scaled = torch.from_numpy(np.ascontiguousarray(queries)) * self._scale
        asked = scaled.to(self._dtype)
        with torch.inference_mode():
            parts = [self._scan_shard(shard, asked, width) for shard in self._shards]
            home = [(scores.cpu(), places.cpu()) for scores, places in parts]
            scores, places = merge(home, width)
        bound = self._bound(scaled.double(), asked.double(), scores[:, -1].double())
        return scores.numpy(), places.numpy(), bound.numpy()

    def _scan_shard(self, shard: _Shard, queries: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return the best of a shard; scores are q.x, for distances q.x - |x|^2 / 2, scaled."""
        asked = queries.to(shard.vectors.device)
        step = max(1, self._block // (4 * max(len(queries), widened(asked))))
        found: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(shard.vectors), step):
            scores = product(asked, shard.vectors[start : start + step])
            if shard.half_norms is not None:
                scores -= shard.half_norms[start : start + step]
            values, places = scores.topk(min(width, scores.shape[1]), dim=1)
            found = [merge([*found, (values, places + (shard.first + start))], width)]
        return found[0]

    def _bound(self, queries: Tensor, rounded: Tensor, last: Tensor) -> Tensor:
        """Return how far the exact score of a vector left out may exceed the last rough score.

        By Cauchy and Schwarz |q.x - q'.x'| <= |q - q'| |x| + |q'| |x - x'|; sums of D products in
        float32 err by at most D 2^-23 of the lengths (2^-22 leaves room for hardware that
        truncates), results in half precision by their own rounding.

        Args:
            queries: (Q, D) float64, scaled.
            rounded: the same in the scan's precision.
            last: (Q,) rough scores of the last candidates.
        """
        length = rounded.norm(dim=1)
        longest = self._longest + self._error
        bound: Tensor = (queries - rounded).norm(dim=1) * self._longest + length * self._error
        bound += (self.d + 2) * 2.0**-22 * length * longest + 2.0**-22 * longest**2
        size = last.abs() if self._inner else length * longest
        stored = (output_rounding(self._dtype, one.vectors.device) for one in self._shards)
        bound += input_rounding(self._dtype) * length * longest
        bound += max(stored) * size
        return bound

    def _make_shards(self, devices: list[torch.device], norms: Vectors) -> Iterator[_Shard]:
        """Put an equal share of the vectors on each device, noting the largest rounding error."""
        import torch

        edges = np.linspace(0, self.ntotal, len(devices) + 1).astype(int)
        for device, first, end in zip(devices, edges[:-1], edges[1:], strict=True):
            kept = torch.empty((end - first, self.d), dtype=self._dtype, device=device)
            for start in range(first, end, _ROWS):
                rows = np.array(self.vectors[start : min(start + _ROWS, end)], np.float32)
                block = torch.from_numpy(rows).to(device) * self._scale
                rounded = block.to(self._dtype)
                kept[start - first : start - first + len(rows)] = rounded
                error = float((block - rounded.float()).norm(dim=1).max())
                self._error = max(self._error, error * (1 + self.d * 2.0**-23))
            half = None
            if not self._inner:
                lengths = norms[first:end].astype(np.float64) * self._scale
                half = torch.from_numpy((lengths**2 / 2).astype(np.float32)).to(device)
            if end > first:
                yield _Shard(int(first), kept, half)


class TorchFlatRetriever(DenseRetriever):
    """An index folder searched exactly through torch, on a GPU or the CPU.

    The answers are those of the same folder opened with ``load_retriever``. The original vectors
    stay in main memory (as FAISS holds them, not copied), where candidates are scored again.

    Args:
        folder: an index folder. The search is exact for the vectors it holds: those of a compressed
            index are decoded, and a warning says that they are not the encoder's own.
        device: a torch device or several, or "auto"; see TorchFlatIndex.
        dtype: of the scan, or "auto".
        corpus: where the corpus lies now, if it has moved.
        block_mb: MiB that the scores of one block may take.
        cache_size: results that are kept for queries that come again; 0 keeps none.

    Raises:
        IndexFolderError: there is no such index, or it does not belong to its corpus.
        ValueError: the folder holds no dense index, or a device is missing or too small.
    """

    def __init__(
        self,
        folder: str,
        device: str | list[str] = "auto",
        dtype: ProductDtype = "auto",
        corpus: str | None = None,
        block_mb: int = 256,
        cache_size: int = CACHED_RESULTS,
    ) -> None:
        opened = open_dense(folder, corpus)
        vectors, original = stored_vectors(opened.index)
        if not original:
            log.warning(
                "%s holds compressed vectors: they are searched exactly as decoded, which is not "
                "an exact search of what the encoder made; build it with --type flat for that",
                folder,
            )
        metric: Metric = "ip" if opened.index.metric_type == _METRIC_TYPES["ip"] else "l2"
        index = TorchFlatIndex(vectors, metric, device, dtype, block_mb)
        file = None if corpus is None else str(Path(corpus).resolve())
        source = (
            type(self),
            (str(Path(folder).resolve()), device, dtype, file, block_mb, cache_size),
        )
        super().__init__(index, opened.passages, opened.encoder, source, cache_size)


def open_dense(folder: str | Path, corpus: str | Path | None = None) -> DenseRetriever:
    """Open an index folder that holds vectors.

    Raises:
        ValueError: it holds none.
    """
    opened = load_retriever(folder, corpus)
    if not isinstance(opened, DenseRetriever):
        raise ValueError(
            f"folder must hold a dense index, got a {type(opened).__name__} in {folder}; build "
            "one: research index build --kind dense"
        )
    return opened


def stored_vectors(index: Any) -> tuple[npt.NDArray[np.floating], bool]:
    """Return the vectors (N, D) of a FAISS index, and whether they are the ones that were added.

    Those of a flat index, in 32 or 16 bits, are a view of FAISS's own memory. Others are copied or
    decoded into a new array.
    """
    faiss = import_faiss()
    shape, size = (index.ntotal, index.d), index.ntotal * index.d
    if hasattr(index, "get_xb"):
        return _view(index, faiss.rev_swig_ptr(index.get_xb(), size)).reshape(shape), True
    quantizer = faiss.ScalarQuantizer
    if isinstance(index, faiss.IndexScalarQuantizer) and index.sq.qtype == quantizer.QT_fp16:
        codes = faiss.rev_swig_ptr(index.codes.data(), 2 * size)
        return _view(index, codes).view(np.float16).reshape(shape), False
    kept = isinstance(index, (faiss.IndexIVFFlat, faiss.IndexHNSWFlat))  # as they were added
    return index.reconstruct_n(0, index.ntotal), kept


class _Memory:
    """Memory of an index as NumPy sees it; arrays made from this keep the index alive."""

    def __init__(self, owner: Any, interface: dict[str, Any]) -> None:
        self.owner, self.__array_interface__ = owner, interface


def _view(owner: Any, borrowed: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(_Memory(owner, dict(borrowed.__array_interface__)))


def _norms(vectors: npt.NDArray[np.floating]) -> Vectors:
    """Return the length of each vector (N,), read block by block; refuse what is not finite."""
    norms = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS].astype(np.float32)
        norms[start : start + _ROWS] = np.linalg.norm(block, axis=1)
    if not np.isfinite(norms).all():
        where = int(np.flatnonzero(~np.isfinite(norms))[0])
        raise ValueError(f"vectors must be finite, got NaN or infinity in vector {where}")
    return norms
