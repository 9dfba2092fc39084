"""Recall of an index against exact search, measured, and tuned by the search width."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from research_rl.envs.retrieval.encoders import Encoder, Vectors
from research_rl.envs.retrieval.index.estimate import SAMPLED, K
from research_rl.envs.retrieval.index.manifest import (
    MANIFEST,
    SAMPLE,
    VECTORS,
    IndexFolderError,
    read_manifest,
    write_json,
)
from research_rl.envs.retrieval.index.open import load_retriever, vectors_of
from research_rl.envs.retrieval.search import (
    BM25Retriever,
    DenseRetriever,
    RankFusion,
    TunedWeights,
    tune_weights,
)
from research_rl.envs.retrieval.vectors import (
    BLOCK,
    Metric,
    Places,
    VectorParts,
    blas_for,
    import_faiss,
    is_inner,
    search_one_by_one,
    search_width_of,
    set_search_width,
    widest,
)
from research_rl.envs.types import Passage, Question

TARGET = 0.95
TIED = 64  # neighbours looked at for those as near as the k-th: any of them will do
_TIE = 1e-5  # relative, as in a search
OWN = "the index's own vectors"
_NOBODY = -2  # FAISS's own is -1


@dataclass(frozen=True)
class Sample:
    """Queries and what exact search finds for them.

    Args:
        queries: float32 (q, dim).
        nearest: int64 (q, k or more), positions of the nearest vectors, with those that are as near
            as the k-th behind them, and -2 where there are no more.
        k: results that are wanted of each query.
    """

    queries: Vectors
    nearest: Places
    k: int

    def recall(self, index: Any) -> float:
        """Return the share of an index's first k that are among the k nearest, ties included."""
        with blas_for(len(self.queries)):
            _, found = index.search(self.queries, self.k)
        return float((found[:, :, None] == self.nearest[:, None, :]).any(axis=2).mean())

    def save(self, path: Path) -> None:
        np.savez(path, queries=self.queries, nearest=self.nearest, k=self.k)

    @classmethod
    def load(cls, path: Path) -> Sample:
        with np.load(path) as arrays:
            nearest = arrays["nearest"]
            return cls(arrays["queries"], nearest, int(arrays.get("k", nearest.shape[1])))


def sample_queries(passages: Sequence[Passage], count: int, seed: int = 0) -> list[str]:
    """Return runs of 6 to 12 words out of different passages, to stand for questions."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(passages), min(count, len(passages)), replace=False)
    queries = []
    for place in np.sort(chosen).tolist():
        contents = passages[place].contents
        words = re.findall(r"\S+", contents.partition("\n")[2] or contents)
        length = int(rng.integers(6, 13))
        start = int(rng.integers(0, max(1, len(words) - length + 1)))
        queries.append(" ".join(words[start : start + length]))
    return queries


def with_ties(distances: Vectors, places: Places, k: int, margin: Vectors) -> Places:
    """Return the positions of the ``k`` nearest and of those that lie as near as the last of them.

    Args:
        distances: float32 (q, n), the smallest first.
        places: int64 (q, n), the positions of these vectors.
        margin: float32 (q,), by how much equal distances may differ.

    Returns:
        int64 (q, k or more), -2 where there are no more.
    """
    near = distances <= distances[:, k - 1 : k] + margin[:, None]
    near[:, :k] = True
    kept = np.where(near & (places >= 0), places, _NOBODY)
    return kept[:, : int(near.any(axis=0).sum())]


def rounding(distances: Vectors, queries: Vectors, metric: Metric) -> Vectors:
    """Return by how much float32 distances (q, n) of queries (q, dim) may be off: (q,)."""
    sizes = np.abs(distances).max(axis=1)
    if metric == "l2":  # the error is that of the squared norms
        sizes = sizes + np.square(queries).sum(axis=1)
    off: Vectors = (_TIE * sizes).astype(np.float32)
    return off


def exact_nearest(vectors: VectorParts, queries: Vectors, k: int, metric: Metric) -> Places:
    """Return the positions of the ``k`` nearest vectors of each query, and of those as near.

    Vectors are read block by block; see ``with_ties``.
    """
    best, places = _nearest(vectors, queries, k, metric)
    return with_ties(best, places, k, rounding(best[:, :k], queries, metric))


def _nearest(
    vectors: VectorParts, queries: Vectors, k: int, metric: Metric
) -> tuple[Vectors, Places]:
    """Return distances and positions of the nearest vectors (q, n), the smallest first."""
    faiss = import_faiss()
    width = min(max(TIED, k), len(vectors))
    kind = faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2
    best = np.empty((len(queries), 0), np.float32)
    places = np.empty((len(queries), 0), np.int64)
    for start, block in vectors.blocks(4 * BLOCK):
        with blas_for(len(queries)):
            distances, found = faiss.knn(queries, block, min(width, len(block)), metric=kind)
        best = np.concatenate([best, -distances if metric == "ip" else distances], axis=1)
        places = np.concatenate([places, found + start], axis=1)
        order = np.argsort(best, axis=1, kind="stable")[:, :width]
        best = np.take_along_axis(best, order, axis=1)
        places = np.take_along_axis(places, order, axis=1)
    return best, places


def with_more(
    sample: Sample,
    encoded: Callable[[list[int]], Vectors],
    new: VectorParts,
    first: int,
    metric: Metric,
) -> Sample:
    """Return a sample with what exact search finds now that there are more vectors.

    What was nearest among the former vectors is all of them that can be nearest now.

    Args:
        sample: of the former vectors.
        encoded: returns the vectors of former passages, by their positions.
        new: the vectors that came.
        first: the position of the first of them.
    """
    known = sample.nearest
    rows = np.unique(known[known >= 0])
    parts = [encoded(rows[i : i + 256].tolist()) for i in range(0, len(rows), 256)]
    kept = np.concatenate(parts)[np.searchsorted(rows, np.maximum(known, rows[0]))]  # (q, n, dim)
    if metric == "ip":
        distances = -np.einsum("qnd,qd->qn", kept, sample.queries)
    else:
        distances = np.square(kept - sample.queries[:, None]).sum(axis=2)
    distances = np.where(known >= 0, distances, np.inf).astype(np.float32)
    nearer, places = _nearest(new, sample.queries, sample.k, metric)
    distances = np.concatenate([distances, nearer], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")
    distances = np.take_along_axis(distances, order, axis=1)
    places = np.take_along_axis(np.concatenate([known, places + first], axis=1), order, axis=1)
    margin = rounding(distances[:, : sample.k], sample.queries, metric)
    return Sample(sample.queries, with_ties(distances, places, sample.k, margin), sample.k)


def make_sample(
    passages: Sequence[Passage],
    vectors: VectorParts,
    encoder: Encoder,
    metric: Metric,
    count: int = SAMPLED,
) -> Sample:
    """Search for sampled queries exactly."""
    queries = encoder.encode_queries(sample_queries(passages, count))
    queries = queries[queries.any(axis=1)] if queries.any() else queries[:1]
    k = min(K, len(vectors))
    return Sample(queries, exact_nearest(vectors, queries, k, metric), k)


def tune(index: Any, sample: Sample, target: float = TARGET) -> tuple[int, float]:
    """Set the smallest nprobe or efSearch that reaches a recall; return it and the recall.

    Where the widest search does not reach it, that is what is set.

    Raises:
        ValueError: the index has nothing to tune, or the target is not above 0 and at most 1.
    """
    if not 0 < target <= 1:
        raise ValueError(f"recall must be above 0 and at most 1, got {target}")
    if search_width_of(index) is None:
        raise ValueError("type must be an ivf or hnsw one to be tuned; others search everything")

    def reached(value: int) -> float:
        set_search_width(index, value)
        return sample.recall(index)

    low, high, limit = 0, 1, widest(index)
    recall = reached(high)
    while recall < target and high < limit:
        low, high = high, min(2 * high, limit)
        recall = reached(high)
    while high - low > max(1, high // 8) and recall >= target:
        middle = (low + high) // 2
        at_middle = reached(middle)
        low, high, recall = (
            (low, middle, at_middle) if at_middle >= target else (middle, high, recall)
        )
    set_search_width(index, high)
    return high, recall


def judge(
    folder: Path, sample: Sample, width: int | None = None, target: float = TARGET
) -> tuple[dict[str, int], dict[str, Any]]:
    """Measure the recall of the vectors in a folder, after looking for a width if none is given.

    Returns:
        The name of the search width and its value (empty for a type without one), and what the
        manifest says of the recall. The sample is kept in the folder.
    """
    index = import_faiss().read_index(str(folder / VECTORS))
    sample.save(folder / SAMPLE)
    search_width = search_width_of(index)
    if search_width is None:
        return {}, recall_manifest(sample, sample.recall(index))
    if width is None:
        width, recall = tune(index, sample, target)
    else:
        width = set_search_width(index, width)
        recall = sample.recall(index)
    return {search_width: width}, recall_manifest(sample, recall)


def recall_manifest(sample: Sample, recall: float) -> dict[str, Any]:
    """Return what a manifest says of an index's recall."""
    return {"k": sample.k, "recall": round(recall, 4), "queries": len(sample.queries)}


def tune_folder(
    folder: str | Path, target: float = TARGET, corpus: str | Path | None = None
) -> dict[str, Any]:
    """Find the search width of an index folder for a recall, and write it into the manifest.

    An index that was built here has a sample of exact results. One that was adopted has none, and
    the vectors it was made from are gone. Its recall is measured against a search of all its own,
    compressed vectors, so that it leaves out what compression itself costs.

    Args:
        folder: what ``build_index`` or ``adopt_index`` made.
        target: share of the exact first results to find.
        corpus: where the corpus of an adopted index lies now, if it has moved.

    Returns:
        What the manifest then says of the recall: k, recall, queries, and for an adopted index
        ``against``.

    Raises:
        IndexFolderError: there is no index.
        ValueError: its type has nothing to tune.
    """
    place = Path(folder)
    manifest = read_manifest(place)
    before = deepcopy(manifest)
    if "index" not in manifest:
        raise ValueError(f"kind must be dense or hybrid to be tuned, got {manifest['kind']!r}")
    try:
        index = vectors_of(place, manifest, None)
    except (RuntimeError, OSError) as error:
        raise IndexFolderError(f"index {folder} is broken ({error}); build it again") from error
    search_width = search_width_of(index)
    if search_width is None:
        raise ValueError(
            f"type must be an ivf or hnsw one to be tuned, got {manifest['index']['type']!r}"
        )
    # one that was adopted and has grown has a file of its own, and still no vectors as they were
    adopted = "file" in manifest["index"] or "against" in manifest.get("recall", {})
    if not (place / SAMPLE).is_file():
        if not adopted:
            raise IndexFolderError(
                f"index {folder} has no sample of exact results ({SAMPLE}); build it again"
            )
        retriever = load_retriever(place, corpus, mmap=True)  # for its encoder and corpus only
        dense = retriever.retrievers[0] if isinstance(retriever, RankFusion) else retriever
        assert isinstance(dense, DenseRetriever)
        own_sample(index, dense.passages, dense.encoder).save(place / SAMPLE)
    try:
        sample = Sample.load(place / SAMPLE)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        mend = f"remove {place / SAMPLE}" if adopted else "build it again"
        raise IndexFolderError(f"index {folder} has a broken sample ({error}); {mend}") from error
    value, recall = tune(index, sample, target)
    manifest["index"][search_width] = value
    manifest["recall"] = recall_manifest(sample, recall) | ({"against": OWN} if adopted else {})
    _rewrite(place, before, manifest)
    return dict(manifest["recall"])


def tune_fusion(
    folder: str | Path,
    questions: Sequence[Question],
    k: int = 5,
    corpus: str | Path | None = None,
) -> TunedWeights:
    """Find the weights of a hybrid index for questions, and write them into its manifest.

    Args:
        folder: what ``build_index`` made with kind "hybrid".
        questions: with ``gold_ids`` of the corpus; others are passed over.
        k: passages of a search.
        corpus: where the corpus lies now, if it has moved.

    Raises:
        IndexFolderError: there is no index.
        ValueError: it is none of kind hybrid, or fewer than 20 questions have supporting passages.
    """
    place = Path(folder)
    manifest = read_manifest(place)
    before = deepcopy(manifest)
    retriever = load_retriever(place, corpus)
    if not isinstance(retriever, RankFusion):
        kind = manifest["kind"]
        raise ValueError(f"kind must be hybrid to be tuned for questions, got {kind!r}")
    dense, lexical = retriever.retrievers
    assert isinstance(dense, DenseRetriever)
    assert isinstance(lexical, BM25Retriever)
    wanted = {str(one) for q in questions for one in q.metadata.get("gold_ids") or ()}
    rows = {p.id: row for row, p in enumerate(dense.passages) if p.id in wanted}
    golds = [{rows.get(str(i), -1) for i in q.metadata.get("gold_ids") or ()} for q in questions]
    asked = [row for row, gold in enumerate(golds) if gold and gold != {-1}]
    texts = [questions[row].text for row in asked]
    depth = max(k, retriever.depth)
    ranked = zip(dense.places(texts, depth), lexical.places(texts, depth), strict=True)
    found = tune_weights(list(ranked), [golds[row] for row in asked], k, retriever.k)
    manifest["fusion"] = {"weights": list(found.weights), "recall": round(found.recall, 4), "k": k}
    _rewrite(place, before, manifest)
    return found


def _rewrite(folder: Path, before: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Write a manifest in place of the one that was read.

    Raises:
        IndexFolderError: another one is there now.
    """
    if read_manifest(folder) != before:
        raise IndexFolderError(
            f"index {folder} must stay as it is while it is tuned, and was replaced meanwhile; "
            "tune it again"
        )
    write_json(folder / MANIFEST, manifest)


def own_sample(index: Any, passages: Sequence[Passage], encoder: Encoder) -> Sample:
    """Search everything that an index holds, for queries made from its passages."""
    queries = encoder.encode_queries(sample_queries(passages, SAMPLED))
    k = min(K, index.ntotal)
    with blas_for(len(queries)):
        found, places = search_one_by_one(index, queries, min(TIED, index.ntotal))
    inner = is_inner(index)
    distances = -found if inner else found
    margin = rounding(found[:, :k], queries, "ip" if inner else "l2")
    return Sample(queries, with_ties(distances, np.asarray(places, np.int64), k, margin), k)
