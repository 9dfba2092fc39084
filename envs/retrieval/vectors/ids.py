"""Ids that a FAISS index gives its vectors: by a map in front of it, or in the lists of an IVF one.

``index.search`` answers with these ids. A vector without one has its position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from research_rl.envs.retrieval.vectors.faiss_types import import_faiss
from research_rl.envs.retrieval.vectors.rescore import Places


def without_id_map(index: Any) -> tuple[Any, Places | None]:
    """Return the index behind an id map, and the map: int64 (n,), the id of each position.

    An index without such a map (``IndexIDMap``, ``IndexIDMap2``) is returned as it is, with None.
    """
    faiss = import_faiss()
    known = faiss.downcast_index(index)
    if not isinstance(known, faiss.IndexIDMap):
        return index, None
    ids = faiss.vector_to_array(known.id_map)
    inner = faiss.downcast_index(known.index)
    inner.referenced_objects = [index]  # a view: the outer index owns it
    return inner, ids


def hides_id_map(index: Any) -> bool:
    """Return whether an id map lies inside another index, where positions cannot be told from ids.

    FAISS's factory makes such an index of ``PCA16,IDMap,Flat``.
    """
    faiss = import_faiss()
    known, outermost = faiss.downcast_index(index), True
    while isinstance(known, (faiss.IndexPreTransform, faiss.IndexIDMap, faiss.IndexRefine)):
        if isinstance(known, faiss.IndexIDMap) and not outermost:
            return True
        inner = known.base_index if isinstance(known, faiss.IndexRefine) else known.index
        known, outermost = faiss.downcast_index(inner), False
    return False


def list_ids(index: Any) -> Iterator[Places]:
    """Yield the ids in each list of an IVF index; nothing for other types."""
    faiss = import_faiss()
    ivf = faiss.try_extract_index_ivf(index)
    if not ivf:
        return
    lists = ivf.invlists
    for number in range(int(ivf.nlist)):
        if size := int(lists.list_size(number)):
            yield np.array(faiss.rev_swig_ptr(lists.get_ids(number), size), np.int64)


def keeps_numbers(index: Any) -> bool:
    """Return whether vectors are kept as they were added, in 32 or 16 bits, and not as codes."""
    faiss = import_faiss()
    known = faiss.downcast_index(index)
    if isinstance(known, (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexHNSWFlat)):
        return True
    half = faiss.ScalarQuantizer.QT_fp16
    return hasattr(known, "sq") and known.sq.qtype == half
