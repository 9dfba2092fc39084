"""Whether the vectors of an index are those of a corpus, and which vector is that of which passage.

A few passages are encoded again: each must lie nearest to its own vector, among those of the others
and of its neighbours in the corpus. That holds for compressed vectors too, and not for those of
another encoder, another corpus, or another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.retrieval.corpus import Corpus
from research_rl.envs.retrieval.encoders import Encoder, Vectors
from research_rl.envs.retrieval.index.manifest import IndexFolderError
from research_rl.envs.retrieval.vectors import (
    Places,
    blas_for,
    hides_id_map,
    import_faiss,
    is_inner,
    keeps_numbers,
    list_ids,
    search_one_by_one,
    without_id_map,
)

_CHECKED = 32
_LEAST, _ENOUGH = 0.5, 0.9  # shares of passages that find themselves: below it is refused, or said
_ALIKE = 0.99  # median cosine; half precision on either side stays above 0.999
_TIE = 1e-4  # relative; passages with the same text
_NEAREST = 10


@dataclass(frozen=True)
class Likeness:
    """How many of some passages, encoded again, find their own vector.

    Args:
        found: passages that do.
        of: passages that were encoded.
        cosine: median of the passages to the vectors of the index; None where these cannot be read
            back, and the index was searched instead.
        exact: whether the index keeps vectors as they were.
    """

    found: int
    of: int
    cosine: float | None
    exact: bool

    @property
    def share(self) -> float:
        return self.found / self.of

    def __str__(self) -> str:
        cosine = f", median cosine {self.cosine:.3f}" if self.cosine is not None else ""
        said = (
            f"{self.found} of {self.of} passages encoded again find themselves in the index{cosine}"
        )
        if self.share < _ENOUGH:
            return (
                f"WARNING: {said}; it was made with another encoder, pooling or corpus, or is "
                "compressed hard: see --encoder, --pooling, --passage-prefix"
            )
        if self.exact and self.cosine is not None and self.cosine < _ALIKE:
            return (
                f"WARNING: {said}; the vectors were made otherwise, by another prefix, pooling or "
                "length: see --passage-prefix, --pooling, --max-length"
            )
        return said


@dataclass(frozen=True)
class Matched:
    """An index and the passages of its vectors.

    Args:
        index: without an id map, so that its ids are positions.
        order: int64 (n,), the row of the corpus at each position; None where these are the same.
        mapped: whether an id map was taken away.
        likeness: how well they fit.
    """

    index: Any
    order: Places | None
    mapped: bool
    likeness: Likeness


def match_rows(
    index: Any, file: Path, passages: Corpus, encoder: Encoder, checked: bool = True
) -> Matched:
    """Find out which vector is that of which passage.

    Ids of the index are taken as rows of the corpus, or as the ids of its passages, whichever lets
    passages find themselves.

    Args:
        index: as it was read, one vector a passage.
        file: where it was read from, for messages.
        checked: refuse an index in which passages do not find themselves.

    Raises:
        IndexFolderError: its ids are neither, or fewer than half of the passages find themselves.
    """
    if hides_id_map(index):
        raise IndexFolderError(
            f"an id map must be the outermost part of an index, got one inside of {file}; write "
            "it again with the map in front (IDMap,PCA64,Flat), or without one"
        )
    inner, ids = without_id_map(index)
    _check_lists(inner, file)
    labels = np.arange(len(passages)) if ids is None else ids
    best: Matched | None = None
    for rows in _orders(labels, passages):
        same = bool((rows == np.arange(len(rows))).all())
        ordered = passages if same else Corpus(passages.path, passages.offsets[rows])
        found = likeness(inner, ordered, encoder)
        if best is None or found.share > best.likeness.share:
            best = Matched(inner, None if same else rows, ids is not None, found)
        if found.share >= _ENOUGH:
            break
    if best is None:
        raise IndexFolderError(
            f"the ids of {file} must be the rows of {passages.path}, 0 to {len(passages) - 1}, or "
            f"the ids of its passages, got {', '.join(map(str, labels[:3].tolist()))}, ...; add "
            "vectors in the order of the corpus, without ids"
        )
    if checked and best.likeness.share < _LEAST:
        said = str(best.likeness).removeprefix("WARNING: ")
        raise IndexFolderError(
            f"index {file} does not belong to {passages.path}: {said}; --unchecked takes it as it "
            "is (passage i for vector i)"
        )
    return best


def likeness(index: Any, passages: Corpus, encoder: Encoder) -> Likeness:
    """Encode some passages again and look whether each finds itself.

    Args:
        index: vector i is that of passage i.
    """
    chosen = np.unique(np.linspace(0, len(passages) - 1, _CHECKED).astype(np.int64))
    around = np.unique(np.concatenate([chosen - 1, chosen, chosen + 1]).clip(0, len(passages) - 1))
    made = encoder.encode_passages([passages[place].contents for place in chosen.tolist()])
    try:
        if ivf := import_faiss().try_extract_index_ivf(index):
            ivf.make_direct_map()
        kept = np.stack([index.reconstruct(place) for place in around.tolist()])
    except RuntimeError:  # a type that cannot give its vectors back can be searched
        return Likeness(_found_by_search(index, made, chosen), len(chosen), None, False)
    products = _unit(made) @ _unit(kept).T  # (chosen, around)
    own = products[np.arange(len(chosen)), np.searchsorted(around, chosen)]
    found = own >= products.max(axis=1) - _TIE
    return Likeness(int(found.sum()), len(chosen), float(np.median(own)), keeps_numbers(index))


def _found_by_search(index: Any, made: Vectors, chosen: Places) -> int:
    """Return how many vectors have their own place among the nearest that a full search finds."""
    with blas_for(len(made)):
        scores, places = search_one_by_one(index, made, min(_NEAREST, index.ntotal))
    scores = scores if is_inner(index) else -scores
    near = scores >= scores[:, :1] - _TIE * np.abs(scores[:, :1])  # the first and its equals
    return int(((places == chosen[:, None]) & near).any(axis=1).sum())


def _unit(vectors: Vectors) -> Vectors:
    units: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return units


def _check_lists(index: Any, file: Path) -> None:
    """Refuse an IVF index whose lists do not hold each of its positions once."""
    seen = np.zeros(index.ntotal, bool)
    listed = False
    for ids in list_ids(index):
        listed = True
        if ids.min() < 0 or ids.max() >= len(seen) or seen[ids].any():
            raise IndexFolderError(
                f"its ids must be the rows of the corpus, 0 to {len(seen) - 1}, each once, got "
                f"{int(ids[0])}, ... in the lists of {file}; add its vectors without ids, or put "
                "an id map in front (IDMap,IVF1024,Flat)"
            )
        seen[ids] = True
    if listed and not seen.all():
        missing = int(np.flatnonzero(~seen)[0])
        raise IndexFolderError(
            f"its ids must be the rows of the corpus, 0 to {len(seen) - 1}, each once, got none "
            f"for {missing} in the lists of {file}"
        )


def _orders(labels: Places, passages: Corpus) -> Iterator[Places]:
    """Yield what rows the ids (n,) may mean: themselves, or those of the passages with these ids.

    The ids of the corpus are read only if the first is not the one.
    """
    ordered = np.sort(labels)
    if (ordered == np.arange(len(labels))).all():
        yield labels
    known = _numbers(passages)
    if known is None:
        return
    rows = np.argsort(known, kind="stable")
    if (known[rows] == ordered).all() and not (known == np.arange(len(known))).all():
        yield rows[np.searchsorted(known[rows], labels)]


def _numbers(passages: Corpus) -> Places | None:
    """Return the ids of a corpus as numbers (n,), None if some are none."""
    numbers = np.empty(len(passages), np.int64)
    for row, passage in enumerate(passages):
        if not passage.id.isascii() or not passage.id.isdigit() or len(passage.id) > 18:
            return None
        numbers[row] = int(passage.id)
    passages.forget()
    return numbers
