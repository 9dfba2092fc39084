"""Retrieval: everything behind Retriever.search, from one index folder to several together.

Read first: index/open.py, then search/dense.py
May import: envs.questions, envs.retrieval.corpus, envs.retrieval.encoders,
    envs.retrieval.index, envs.retrieval.search, envs.retrieval.vectors, envs.retrieval.web,
    envs.system, envs.types
"""

from __future__ import annotations

from research_rl.envs.retrieval.corpus import Corpus, CorpusError
from research_rl.envs.retrieval.encoders import BM25SketchEncoder, Encoder, HFEncoder, make_encoder
from research_rl.envs.retrieval.faiss_gpu import GpuFaissRetriever
from research_rl.envs.retrieval.hybrid import HybridRetriever
from research_rl.envs.retrieval.index import (
    IndexFolderError,
    Storage,
    build_index,
    build_milvus,
    extend_index,
    forget_retrievers,
    load_retriever,
    merge_shards,
)
from research_rl.envs.retrieval.milvus import MilvusRetriever
from research_rl.envs.retrieval.rerank import RerankRetriever
from research_rl.envs.retrieval.search import BM25Retriever, DenseRetriever
from research_rl.envs.retrieval.torch_flat import TorchFlatRetriever
from research_rl.envs.retrieval.web import RemoteRetriever

__all__ = [
    "BM25Retriever",
    "BM25SketchEncoder",
    "Corpus",
    "CorpusError",
    "DenseRetriever",
    "Encoder",
    "GpuFaissRetriever",
    "HFEncoder",
    "HybridRetriever",
    "IndexFolderError",
    "MilvusRetriever",
    "RemoteRetriever",
    "RerankRetriever",
    "Storage",
    "TorchFlatRetriever",
    "build_index",
    "build_milvus",
    "extend_index",
    "forget_retrievers",
    "load_retriever",
    "make_encoder",
    "merge_shards",
]
