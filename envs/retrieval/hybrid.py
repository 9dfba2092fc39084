"""Hybrid search: several retrievers fused, each given as an object or as an index folder.

``HybridRetriever(["indexes/e5", "indexes/bm25"])`` finds by meaning and by words.
"""

from __future__ import annotations

from research_rl.envs.retrieval.index import open_retriever
from research_rl.envs.retrieval.search import CACHED_RESULTS, RankFusion
from research_rl.envs.types import Retriever


class HybridRetriever(RankFusion):
    """Reciprocal rank fusion of retrievers that a YAML names; see RankFusion for the formula.

    Args:
        retrievers: at least two retrievers, or the index folders to open; of these no results are
            kept but those of the fusion, which are shorter.
        weights: one a retriever; None weighs all alike.
        k: the larger, the less the first ranks stand out.
        depth: passages asked of each retriever, at least as many as are wanted.
        cache_size: results that are kept for queries that come again; 0 keeps none.
    """

    def __init__(
        self,
        retrievers: list[Retriever | str],
        weights: list[float] | None = None,
        k: int = 60,
        depth: int = 100,
        cache_size: int = CACHED_RESULTS,
    ) -> None:
        if len(retrievers) < 2:  # before any folder is opened
            raise ValueError(f"retrievers must be at least two, got {len(retrievers)}")
        super().__init__([open_retriever(one) for one in retrievers], weights, k, depth, cache_size)
