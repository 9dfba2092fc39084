"""Index folders: built, adopted, checked against their manifest, measured, opened.

Read first: build.py, then open.py
May import: envs.questions, envs.retrieval.corpus, envs.retrieval.encoders, envs.retrieval.search,
    envs.retrieval.vectors, envs.system, envs.types
"""

from __future__ import annotations

from research_rl.envs.retrieval.index.add import extend_index
from research_rl.envs.retrieval.index.adopt import adopt_index
from research_rl.envs.retrieval.index.build import build_index, merge_shards
from research_rl.envs.retrieval.index.estimate import duration, parse_size, size
from research_rl.envs.retrieval.index.manifest import (
    MANIFEST,
    MILVUS,
    IndexFolderError,
    index_contents,
    read_manifest,
)
from research_rl.envs.retrieval.index.milvus import build_milvus
from research_rl.envs.retrieval.index.open import (
    forget_retrievers,
    load_retriever,
    milvus_parts,
    open_corpus_of,
    open_retriever,
)
from research_rl.envs.retrieval.index.recall import TARGET, tune_folder, tune_fusion
from research_rl.envs.retrieval.index.shards import metric_of
from research_rl.envs.retrieval.index.storage import Storage

__all__ = [
    "MANIFEST",
    "MILVUS",
    "TARGET",
    "IndexFolderError",
    "Storage",
    "adopt_index",
    "build_index",
    "build_milvus",
    "duration",
    "extend_index",
    "forget_retrievers",
    "index_contents",
    "load_retriever",
    "merge_shards",
    "metric_of",
    "milvus_parts",
    "open_corpus_of",
    "open_retriever",
    "parse_size",
    "read_manifest",
    "size",
    "tune_folder",
    "tune_fusion",
]
