"""Corpora, encoders and indexes: everything behind Retriever.search."""

from research_rl.envs.retrieval.bm25 import BM25Retriever
from research_rl.envs.retrieval.corpus import Corpus, CorpusError
from research_rl.envs.retrieval.dense import DenseRetriever
from research_rl.envs.retrieval.encoders import BM25SketchEncoder, Encoder, make_encoder
from research_rl.envs.retrieval.gpu import GpuFaissRetriever
from research_rl.envs.retrieval.hf_encoder import HFEncoder
from research_rl.envs.retrieval.hybrid import HybridRetriever
from research_rl.envs.retrieval.index import (
    IndexFolderError,
    build_index,
    forget_retrievers,
    load_retriever,
    merge_shards,
)
from research_rl.envs.retrieval.remote import RemoteRetriever
from research_rl.envs.retrieval.rerank import RerankRetriever
from research_rl.envs.retrieval.storage import Storage
from research_rl.envs.retrieval.torch_search import TorchFlatRetriever

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
    "RemoteRetriever",
    "RerankRetriever",
    "Storage",
    "TorchFlatRetriever",
    "build_index",
    "forget_retrievers",
    "load_retriever",
    "make_encoder",
    "merge_shards",
]
