"""A search of all that an IVF index or a graph holds, whatever stands around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")

from doubles.numbered import DIM, Numbered  # noqa: E402

from research_rl.envs.retrieval.vectors.faiss_types import (  # noqa: E402
    new_index,
    search_everywhere,
    search_one_by_one,
)


def filled(factory: str) -> tuple[Any, Any]:
    """600 vectors, and an index of this type that holds them."""
    vectors = Numbered().encode_passages([str(i) for i in range(600)])
    index = new_index(DIM, "ip", factory)
    index.train(vectors)
    index.add(vectors)
    return vectors, index


@pytest.mark.parametrize(
    "factory", ["RR32,IVF8,SQ8", "PCA16,IVF8,Flat", "IVF8,Flat", "PCA16,IVF8,SQ8,RFlat"]
)
def test_all_lists_of_a_transformed_index_are_searched(factory: str) -> None:
    vectors, index = filled(factory)
    few = search_everywhere(index, vectors[:20], 600)[1]
    assert (np.sort(few, axis=1) == np.arange(600)).all()
    faiss.extract_index_ivf(index).nprobe = 8
    assert (few[:, 0] == index.search(vectors[:20], 1)[1][:, 0]).all()


@pytest.mark.parametrize(
    "factory", ["IVF8,PQ8x4,RFlat", "PCA16,IVF8,SQ8,RFlat", "HNSW8_SQ8,RFlat", "PCA16,HNSW8,RFlat"]
)
def test_a_full_search_of_a_refined_type_has_refined_scores(factory: str) -> None:
    vectors, index = filled(factory)
    for search in (search_everywhere, search_one_by_one):
        scores, places = search(index, vectors[:5], 600)
        found = places[0][places[0] >= 0]  # a graph that is walked may not reach all
        np.testing.assert_allclose(scores[0][: len(found)], vectors[found] @ vectors[0], rtol=1e-4)
    assert (np.sort(places, axis=1) == np.arange(600)).all(), "one by one sees every vector"
