"""Tuning of the search width of an index folder for a recall: ``research index tune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from research_rl.envs.retrieval.encoders import Encoder
from research_rl.envs.retrieval.index.estimate import SAMPLED, K
from research_rl.envs.retrieval.index.manifest import (
    MANIFEST,
    SAMPLE,
    IndexFolderError,
    read_manifest,
    write_json,
)
from research_rl.envs.retrieval.index.open import load_retriever, vectors_of
from research_rl.envs.retrieval.index.recall import (
    TARGET,
    TIED,
    Sample,
    recall_manifest,
    rounding,
    sample_queries,
    tune,
    with_ties,
)
from research_rl.envs.retrieval.search import DenseRetriever, RankFusion
from research_rl.envs.retrieval.vectors import (
    blas_for,
    is_inner,
    search_one_by_one,
    search_width_of,
)
from research_rl.envs.types import Passage

OWN = "the index's own vectors"


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
    adopted = "file" in manifest["index"]
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
    write_json(place / MANIFEST, manifest)
    return dict(manifest["recall"])


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
