"""Corpora: passages on disk, read by row without loading the whole.

Read first: corpus.py
May import: envs.documents, envs.questions, envs.system, envs.types
"""

from __future__ import annotations

from research_rl.envs.retrieval.corpus.corpus import Corpus, CorpusError
from research_rl.envs.retrieval.corpus.hub import grown_corpus, local_corpus

__all__ = [
    "Corpus",
    "CorpusError",
    "grown_corpus",
    "local_corpus",
]
