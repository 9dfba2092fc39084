"""FAISS indexes on NVIDIA GPUs, where faiss-gpu is installed: one device, or shards over several.

Take this for an IVF index (``--type ivf``, ``ivf-sq8``, ``ivf-pq``): it searches a few lists where
``TorchFlatRetriever`` would score every vector. Over a flat index take ``TorchFlatRetriever``: it
needs no faiss-gpu and proves that its answers are exact.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.retrieval.encoders import Vectors
from research_rl.envs.retrieval.search import CACHED_RESULTS, DenseRetriever
from research_rl.envs.retrieval.torch_flat import open_dense, stored_vectors
from research_rl.envs.retrieval.vectors import (
    Places,
    as_faiss,
    best,
    exact_scores,
    import_faiss,
    is_exact,
    search_everywhere,
)

MAX_K = 2048
"""FAISS's kernels on a GPU select no more than this, passages as well as lists."""
_OVERSAMPLE = 4


def to_gpu(
    index: Any, devices: Sequence[int] | None = None, fp16: bool = False, shard: bool = True
) -> Any:
    """Return a copy of a FAISS index on GPUs.

    Args:
        index: flat, IVF-flat, IVF-SQ or IVF-PQ; the copy keeps its nprobe.
        devices: numbers of the devices; None is all of them.
        fp16: keep the vectors of a flat index in half precision.
        shard: give each of several devices a part of the vectors; else each gets all of them and a
            part of the queries.

    Raises:
        ImportError: FAISS is not installed, or was built without CUDA.
        RuntimeError: FAISS sees no device.
        ValueError: no such device, or FAISS has no such index on a GPU.
    """
    faiss = import_faiss()
    chosen = _check_devices(faiss, devices)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf and ivf.nprobe > MAX_K:
        raise ValueError(
            f"nprobe must be at most {MAX_K} on a GPU, got {ivf.nprobe}; take less with research "
            "index tune --recall, or search on the CPU with load_retriever"
        )
    try:
        if len(chosen) == 1:
            options = faiss.GpuClonerOptions()
            options.useFloat16 = fp16
            resources = faiss.StandardGpuResources()
            return faiss.index_cpu_to_gpu(resources, chosen[0], index, options)
        options = faiss.GpuMultipleClonerOptions()
        options.useFloat16, options.shard = fp16, shard
        if devices is None:
            return faiss.index_cpu_to_all_gpus(index, co=options)
        return faiss.index_cpu_to_gpus_list(index, co=options, gpus=chosen)
    except RuntimeError as error:
        raise ValueError(
            f"index must be one that FAISS can put on a GPU with memory for it (flat, ivf, "
            f"ivf-sq8, ivf-pq), got {type(index).__name__} of {index.ntotal} x {index.d}: {error}; "
            "use another --type, fp16, more devices, or search on the CPU with load_retriever"
        ) from error


class GpuIndex:
    """A FAISS index and its copy on GPUs, with the part of FAISS's interface that retrievers use.

    One search at a time: FAISS's GPU indexes are not thread-safe. Searches for more than the
    kernels select (2048) go to the CPU, and so do queries whose IVF lists hold too few vectors.

    Args:
        index: the FAISS index on the CPU.
        devices: numbers of the devices; None is all of them.
        fp16: keep the vectors of a flat index in half precision; four times as many candidates as
            wanted are then scored again from the CPU's float32.
        shard: see ``to_gpu``.
    """

    def __init__(
        self,
        index: Any,
        devices: Sequence[int] | None = None,
        fp16: bool = False,
        shard: bool = True,
    ) -> None:
        self.ntotal, self.d, self.metric_type = index.ntotal, index.d, index.metric_type
        self._cpu, self._gpu = index, to_gpu(index, devices, fp16, shard)
        self.exact = is_exact(index)
        self._rescore = fp16 and self.exact
        self._inner = index.metric_type == import_faiss().METRIC_INNER_PRODUCT
        self._lock = threading.Lock()

    def search(self, queries: Vectors, k: int, **options: Any) -> tuple[Vectors, Places]:
        """Return distances or inner products and positions, both (Q, k), as FAISS does."""
        width = min(_OVERSAMPLE * k, self.ntotal) if self._rescore else k
        if width > MAX_K:
            scores, places = self._cpu.search(queries, k, **options)
            return scores, places
        queries = np.ascontiguousarray(queries)
        with self._lock:
            scores, places = self._gpu.search(queries, width, **options)
        if not self._rescore:
            short = np.flatnonzero(places[:, -1] < 0)
            if len(short) and k <= self.ntotal:
                found = search_everywhere(self._cpu, queries[short], k)
                scores[short], places[short] = found
            return scores, places
        vectors = stored_vectors(self._cpu)[0]
        exact = exact_scores(queries, places, vectors.__getitem__, self._inner)
        scores, places = best(exact, places, k)
        return as_faiss(scores, self._inner), places


class GpuFaissRetriever(DenseRetriever):
    """An index folder searched by FAISS on NVIDIA GPUs.

    Args:
        folder: an index folder.
        devices: numbers of the devices; None is all of them.
        fp16: keep the vectors of a flat index in half precision; see GpuIndex.
        shard: split the vectors over several devices, rather than copying them to each.
        corpus: where the corpus lies now, if it has moved.
        cache_size: results that are kept for queries that come again; 0 keeps none.

    Raises:
        ImportError: FAISS was built without CUDA.
        RuntimeError: FAISS sees no device.
        ValueError: the folder holds no dense index, no such device, or not an index for GPUs.
    """

    def __init__(
        self,
        folder: str,
        devices: list[int] | None = None,
        fp16: bool = False,
        shard: bool = True,
        corpus: str | None = None,
        cache_size: int = CACHED_RESULTS,
    ) -> None:
        _check_devices(import_faiss(), devices)
        opened = open_dense(folder, corpus)
        file = None if corpus is None else str(Path(corpus).resolve())
        source = (type(self), (str(Path(folder).resolve()), devices, fp16, shard, file, cache_size))
        index = GpuIndex(opened.index, devices, fp16, shard)
        super().__init__(index, opened.passages, opened.encoder, source, cache_size)


def _check_devices(faiss: Any, devices: Sequence[int] | None) -> list[int]:
    """Return the devices that are meant, if this FAISS can use them."""
    if not hasattr(faiss, "StandardGpuResources"):
        raise ImportError(
            "FAISS must be built with CUDA for a search on a GPU, got a build for the CPU; do "
            "pip uninstall -y faiss-cpu faiss-gpu && pip install -e '.[gpu]', or use "
            "TorchFlatRetriever, which needs no such FAISS"
        )
    count = int(faiss.get_num_gpus())
    if not count:
        raise RuntimeError(
            "an NVIDIA GPU must be there, got none that FAISS sees; look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or search on the CPU with load_retriever"
        )
    chosen = list(range(count)) if devices is None else list(devices)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(count)):
        raise ValueError(
            f"devices must be different numbers below {count}, at least one, got {chosen}"
        )
    return chosen
