"""Search over one opened index: dense, BM25, or both with their ranks fused.

Read first: dense.py
May import: envs.retrieval.encoders, envs.retrieval.vectors, envs.types
"""

from __future__ import annotations

from research_rl.envs.retrieval.search.bm25 import (
    DEFAULTS,
    BM25Retriever,
    fit_bm25,
    import_bm25s,
    load_bm25,
    save_bm25,
)
from research_rl.envs.retrieval.search.cache import CACHED_RESULTS, CachedRetriever
from research_rl.envs.retrieval.search.dense import DenseRetriever
from research_rl.envs.retrieval.search.fusion import RankFusion

__all__ = [
    "CACHED_RESULTS",
    "DEFAULTS",
    "BM25Retriever",
    "CachedRetriever",
    "DenseRetriever",
    "RankFusion",
    "fit_bm25",
    "import_bm25s",
    "load_bm25",
    "save_bm25",
]
