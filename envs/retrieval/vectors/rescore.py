"""Exact scores of a few candidates: the second half of a search whose first half was rough."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from research_rl.envs.retrieval.encoders import Floats, Vectors

Places = npt.NDArray[np.int64]
VectorsAt = Callable[[Places], npt.NDArray[np.floating]]

NOBODY = -1
"""FAISS's id where an index has fewer vectors than were asked for."""
WORST = float(np.finfo(np.float32).max)
"""FAISS's distance of such a missing vector; its inner product is minus this."""
_CHUNK_NUMBERS = 1 << 23  # of float64 at a time: 64 MiB


def exact_scores(queries: Vectors, places: Places, vectors_at: VectorsAt, inner: bool) -> Floats:
    """Return how well candidates match: inner products, or minus the squared distances.

    Products are summed in float64, so that a score depends neither on the other candidates nor on
    the batch.

    Args:
        queries: (Q, D).
        places: (Q, C) positions of candidates; -1 is none and scores -inf.
        vectors_at: gives the vectors (m, D) at positions (m,).
        inner: inner products rather than distances.

    Returns:
        float64 (Q, C).
    """
    scores = np.full(places.shape, -np.inf)
    step = max(1, _CHUNK_NUMBERS // queries.shape[1])
    for row, query in enumerate(queries.astype(np.float64)):
        for start in range(0, places.shape[1], step):
            chosen = places[row, start : start + step]
            there = chosen != NOBODY
            vectors = vectors_at(chosen[there]).astype(np.float64)
            found = vectors @ query if inner else -np.square(vectors - query).sum(axis=1)
            scores[row, start : start + step][there] = found
    return scores


def best(scores: Floats, places: Places, k: int) -> tuple[Vectors, Places]:
    """Return the ``k`` best candidates of each row, best first, equal scores by position.

    Args:
        scores: (Q, C), -inf where there is no candidate.
        places: (Q, C) int64.
        k: may be larger than C; what is missing has position -1 and score -inf.

    Returns:
        Scores as float32 and positions, both (Q, k).
    """
    missing = ((0, 0), (0, max(0, k - scores.shape[1])))
    rounded = np.pad(scores, missing, constant_values=-np.inf).astype(np.float32)
    padded = np.pad(places, missing, constant_values=NOBODY)
    order = np.lexsort((padded, -rounded), axis=1)[:, :k]
    return np.take_along_axis(rounded, order, 1), np.take_along_axis(padded, order, 1)


def as_faiss(scores: Vectors, inner: bool) -> Vectors:
    """Return scores in FAISS's convention: distances are positive, nothing found is +-3.4e38."""
    bounded: Vectors = np.maximum(scores, -WORST).astype(np.float32)
    return bounded if inner else -bounded
