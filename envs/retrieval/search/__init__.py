"""Search over one opened index: dense, BM25, both with their ranks fused, or in Milvus.

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
from research_rl.envs.retrieval.search.milvus import (
    LONGEST_ID,
    LONGEST_TEXT,
    PASSPORT_ROW,
    MilvusCollection,
    MilvusSearch,
    MilvusSearchBy,
    import_pymilvus,
    lite_uri,
    milvus_words,
)
from research_rl.envs.retrieval.search.weights import TunedWeights, tune_weights

__all__ = [
    "CACHED_RESULTS",
    "DEFAULTS",
    "LONGEST_ID",
    "LONGEST_TEXT",
    "PASSPORT_ROW",
    "BM25Retriever",
    "CachedRetriever",
    "DenseRetriever",
    "MilvusCollection",
    "MilvusSearch",
    "MilvusSearchBy",
    "RankFusion",
    "TunedWeights",
    "fit_bm25",
    "import_bm25s",
    "import_pymilvus",
    "lite_uri",
    "load_bm25",
    "milvus_words",
    "save_bm25",
    "tune_weights",
]
