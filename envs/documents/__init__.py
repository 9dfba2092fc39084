"""Documents: a folder of files made into a corpus of passages, and texts that repeat each other.

Read first: build.py, then reading.py
May import: envs.retrieval.encoders, envs.system
"""

from __future__ import annotations

from research_rl.envs.documents.build import build_documents
from research_rl.envs.documents.kinds import kind_of
from research_rl.envs.documents.near import NEAR, NearTexts
from research_rl.envs.documents.report import CorpusReport
from research_rl.envs.documents.split import SEPARATOR

__all__ = [
    "NEAR",
    "SEPARATOR",
    "CorpusReport",
    "NearTexts",
    "build_documents",
    "kind_of",
]
