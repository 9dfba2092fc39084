"""FAISS index types by name: their memory, their training and their search width.

``factory_string("ivf-sq8", 1_000_000, 768)`` is ``"IVF4096,SQ8"``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

from research_rl.envs.system import did_you_mean

Metric = Literal["ip", "l2"]
TYPES = ("flat", "sq8", "ivf", "ivf-sq8", "ivf-pq", "rabitq", "hnsw")
_HALF = {"flat": "SQfp16", "ivf": "IVF{lists},SQfp16", "hnsw": "HNSW32_SQfp16"}
_FACTORY = {
    "flat": "Flat",
    "sq8": "SQ8",
    "ivf": "IVF{lists},Flat",
    "ivf-sq8": "IVF{lists},SQ8",
    "ivf-pq": "IVF{lists},PQ{bytes}",
    "rabitq": "RR{dim},IVF{lists},RaBitQ",  # one bit a number needs them mixed first
    "hnsw": "HNSW32",
}
_EF_CONSTRUCTION = 200


@dataclass
class _Threshold:
    """How many threads have lowered FAISS's threshold for BLAS, and its value before."""

    lock: Any = field(default_factory=Lock)
    users: int = 0
    before: int = 0


_BLAS = _Threshold()


def import_faiss() -> Any:
    """Return the module ``faiss``.

    Raises:
        ImportError: it is not installed; the message is the line that installs it.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "FAISS must be installed for dense retrieval; do pip install -e '.[cpu]', or "
            "-e '.[gpu]' on a machine with an NVIDIA GPU (one of them, never both: "
            "faiss-cpu and faiss-gpu own the same module)"
        ) from error
    return faiss


def factory_string(index_type: str, count: int, dim: int, fp16: bool = False) -> str:
    """Return the FAISS factory string of a type: one of ``TYPES``, or such a string itself.

    IVF gets about 4 sqrt(count) lists, a power of two, and never fewer than 39 vectors a list,
    below which FAISS's k-means warns. PQ spends a byte on eight numbers, or more
    where that would make over 128 bytes.

    Args:
        fp16: numbers of 16 bits where the type keeps numbers as they are (flat, ivf, hnsw).
    """
    if fp16 and index_type not in _HALF:
        raise ValueError(
            f"fp16 must go with the types {', '.join(_HALF)}, got {index_type!r}; leave it out"
        )
    template = (_HALF if fp16 else _FACTORY).get(index_type)
    if template is None:
        return index_type
    lists = 2 ** round(math.log2(4 * math.sqrt(count)))
    while lists > 1 and lists * 39 > count:
        lists //= 2
    codes = next(size for size in range(min(max(dim // 8, 1), 128), 0, -1) if dim % size == 0)
    return template.format(lists=lists, bytes=codes, dim=dim)


def new_index(dim: int, metric: Metric = "ip", factory: str = "Flat") -> Any:
    """Return an empty FAISS index for vectors of that length.

    Raises:
        ValueError: no such metric, or FAISS does not know the factory string.
    """
    faiss = import_faiss()
    if metric not in ("ip", "l2"):
        raise ValueError(f"metric must be one of 'ip', 'l2', got {metric!r}")
    kind = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    try:
        index = faiss.index_factory(dim, factory, kind)
    except RuntimeError as error:
        hint = did_you_mean(factory.lower(), TYPES, quoted=True)
        raise ValueError(
            f"type must be one of {', '.join(TYPES)} or a FAISS factory string for {dim} "
            f"numbers, such as IVF1024,SQ8, got {factory!r}{hint}"
        ) from error
    if hnsw := _hnsw(index):
        hnsw.efConstruction = _EF_CONSTRUCTION
    if hasattr(_base(index), "do_polysemous_training"):
        _base(index).do_polysemous_training = False  # slow, and for a search not used here
    return index


def is_exact(index: Any) -> bool:
    """Return whether a search gives the nearest vectors themselves.

    Of FAISS's own indexes only the flat ones do. Other classes do, unless their ``exact`` is False.
    """
    if isinstance(index, import_faiss().Index):
        return type(index).__name__.startswith(("IndexFlat", "GpuIndexFlat"))
    return bool(getattr(index, "exact", True))


def is_inner(index: Any) -> bool:
    """Return whether scores are inner products, of which the larger is the better."""
    return bool(index.metric_type == import_faiss().METRIC_INNER_PRODUCT)


def bytes_per_vector(index: Any) -> int:
    """Return about how much memory one vector takes in an index, in bytes."""
    faiss = import_faiss()
    known = faiss.downcast_index(index)  # a view: it does not keep the index alive
    if isinstance(known, faiss.IndexPreTransform):
        return bytes_per_vector(known.index)
    if isinstance(known, faiss.IndexRefine):  # finds with one index, scores again with another
        return bytes_per_vector(known.base_index) + _code_size(known.refine_index)
    if ivf := faiss.try_extract_index_ivf(index):
        return int(ivf.code_size) + 8
    if hnsw := _hnsw(index):
        # twice M links of 4 bytes at the bottom; the upper levels and offsets add about a tenth
        return int(_code_size(_base(index).storage) + 1.1 * 4 * hnsw.nb_neighbors(0) + 16)
    return _code_size(_base(index))


@contextmanager
def clustering_on_gpus(index: Any) -> Iterator[None]:
    """Let the k-means of an IVF index run on all GPUs, where FAISS has CUDA and sees any.

    Source: https://github.com/facebookresearch/faiss/wiki/Faiss-on-the-GPU
    """
    faiss = import_faiss()
    able = hasattr(faiss, "index_cpu_to_all_gpus") and faiss.get_num_gpus() > 0
    ivf = faiss.try_extract_index_ivf(index) if able else None
    if ivf is None:
        yield
        return
    on_gpus = faiss.index_cpu_to_all_gpus(faiss.IndexFlat(ivf.d, ivf.metric_type))
    ivf.clustering_index = on_gpus
    try:
        yield
    finally:
        ivf.clustering_index = None  # the index does not own it


def training_rows(index: Any, count: int) -> int:
    """Return how many vectors an index learns from: 64 a list, 10,000 for codes, 0 for none."""
    if index.is_trained:
        return 0
    ivf = import_faiss().try_extract_index_ivf(index)
    return min(count, max(10_000, 64 * int(ivf.nlist) if ivf else 0))


def least_rows(index: Any) -> int:
    """Return how many vectors an index cannot be trained without: one a list, one a PQ code."""
    if index.is_trained:
        return 0
    ivf, pq = import_faiss().try_extract_index_ivf(index), product_quantizer(index)
    return max(1, int(ivf.nlist) if ivf else 0, int(pq.ksub) if pq else 0)


def product_quantizer(index: Any) -> Any:
    """Return the product quantizer of an index, None if it has none."""
    base = _base(index)
    return getattr(
        import_faiss().downcast_index(base.storage) if _hnsw(index) else base, "pq", None
    )


def sample_rows(index: Any, count: int, memory: int) -> int:
    """Return how many of ``count`` vectors an index learns from with so many bytes of memory.

    The sample may take a quarter of them, but is never below 256 vectors for that reason.
    """
    return min(training_rows(index, count), max(256, memory // 4 // (4 * int(index.d))))


def search_width_of(index: Any) -> str | None:
    """Return the name of the setting that trades time for recall: "nprobe", "efSearch" or None."""
    if import_faiss().try_extract_index_ivf(index):
        return "nprobe"
    return "efSearch" if _hnsw(index) else None


def widest(index: Any) -> int:
    """Return the largest sensible search width of an index."""
    ivf = import_faiss().try_extract_index_ivf(index)
    return int(ivf.nlist) if ivf else max(16, min(4096, int(index.ntotal)))


def set_search_width(index: Any, value: int) -> int:
    """Set the search width, at most to the widest there is, and return it.

    Raises:
        ValueError: the index has nothing to set, or the value is below 1.
    """
    search_width = search_width_of(index)
    if search_width is None:
        raise ValueError("nprobe needs an IVF index and ef_search an HNSW index; leave them out")
    if value < 1:
        raise ValueError(f"{search_width} must be at least 1, got {value}")
    width = min(value, widest(index))
    import_faiss().ParameterSpace().set_index_parameter(index, search_width, width)
    return width


def search_width_set(index: Any) -> int:
    """Return the search width that an index has now."""
    ivf = import_faiss().try_extract_index_ivf(index)
    return int(ivf.nprobe if ivf else _hnsw(index).efSearch)


def search_everywhere(index: Any, vectors: Any, k: int) -> tuple[Any, Any]:
    """Search all lists of an IVF index, whatever its nprobe; search other types as usual."""
    ivf = import_faiss().try_extract_index_ivf(index)
    if not ivf:
        return index.search(vectors, k)  # type: ignore[no-any-return]
    params = _for_all_lists(index, int(ivf.nlist))
    return index.search(vectors, k, params=params)  # type: ignore[no-any-return]


def search_one_by_one(index: Any, vectors: Any, k: int) -> tuple[Any, Any]:
    """Compare with every vector of an IVF index or a graph; search other types as usual."""
    if not _hnsw(index):
        return search_everywhere(index, vectors, k)
    return _without_graph(index).search(vectors, k)  # type: ignore[no-any-return]


@contextmanager
def blas_for(num_queries: int) -> Iterator[None]:
    """Let FAISS use BLAS for every batch of two queries or more.

    On its own it does so from some hundred queries on; at 64 queries of 384 numbers that is
    slower by a factor of seven. The threshold is global to the process: the first of several
    threads lowers it and the last one puts it back.
    """
    if num_queries == 1:
        yield
        return
    cvar = import_faiss().cvar
    with _BLAS.lock:
        if _BLAS.users == 0:
            _BLAS.before = cvar.distance_compute_blas_threshold
            cvar.distance_compute_blas_threshold = 1
        _BLAS.users += 1
    try:
        yield
    finally:
        with _BLAS.lock:
            _BLAS.users -= 1
            if _BLAS.users == 0:
                cvar.distance_compute_blas_threshold = _BLAS.before


def _base(index: Any) -> Any:
    """Return the index inside transforms and id maps."""
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    while isinstance(index, (faiss.IndexPreTransform, faiss.IndexIDMap, faiss.IndexRefine)):
        inner = index.base_index if isinstance(index, faiss.IndexRefine) else index.index
        index = faiss.downcast_index(inner)
    return index


def _for_all_lists(index: Any, lists: int) -> Any:
    """Return the parameters of a search in all lists, one for each part around the IVF index."""
    faiss = import_faiss()
    known = faiss.downcast_index(index)
    if isinstance(known, faiss.IndexPreTransform):
        inner = _for_all_lists(known.index, lists)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(known, faiss.IndexIDMap):
        return _for_all_lists(known.index, lists)
    if isinstance(known, faiss.IndexRefine):
        inner = _for_all_lists(known.base_index, lists)
        return faiss.IndexRefineSearchParameters(
            k_factor=float(known.k_factor), base_index_params=inner
        )
    return faiss.SearchParametersIVF(nprobe=lists)


def _without_graph(index: Any) -> Any:
    """Return an index over the same vectors, all parts but the graph as they are; it owns none."""
    faiss = import_faiss()
    known = faiss.downcast_index(index)
    if isinstance(known, faiss.IndexPreTransform):
        made = faiss.IndexPreTransform(_without_graph(known.index))
        for step in reversed(range(known.chain.size())):
            made.prepend_transform(known.chain.at(step))
        return made
    if isinstance(known, faiss.IndexIDMap):
        return _without_graph(known.index)
    if isinstance(known, faiss.IndexRefine):
        made = faiss.IndexRefine(_without_graph(known.base_index), known.refine_index)
        made.k_factor = known.k_factor
        return made
    return known.storage


def _hnsw(index: Any) -> Any:
    return getattr(_base(index), "hnsw", None)


def _code_size(index: Any) -> int:
    index = import_faiss().downcast_index(index)
    return int(getattr(index, "code_size", 4 * index.d))
