"""Corpora, encoders and FAISS indexes: everything behind Retriever.search."""

from research_rl.envs.retrieval.corpus import Corpus, CorpusError
from research_rl.envs.retrieval.dense import DenseRetriever
from research_rl.envs.retrieval.encoders import BM25SketchEncoder, Encoder, make_encoder
from research_rl.envs.retrieval.hf_encoder import HFEncoder
from research_rl.envs.retrieval.index import IndexFolderError, build_index, load_retriever

__all__ = [
    "BM25SketchEncoder",
    "Corpus",
    "CorpusError",
    "DenseRetriever",
    "Encoder",
    "HFEncoder",
    "IndexFolderError",
    "build_index",
    "load_retriever",
    "make_encoder",
]
