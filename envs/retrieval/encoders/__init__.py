"""Encoders: texts in, vectors out.

Read first: base.py
May import: envs.system
"""

from __future__ import annotations

from research_rl.envs.retrieval.encoders.base import Encoder, Floats, Vectors
from research_rl.envs.retrieval.encoders.huggingface import HFEncoder
from research_rl.envs.retrieval.encoders.make import make_encoder
from research_rl.envs.retrieval.encoders.sketch import SKETCH, BM25SketchEncoder
from research_rl.envs.retrieval.encoders.terms import NEWEST_RULE, WordRule, words

__all__ = [
    "NEWEST_RULE",
    "SKETCH",
    "BM25SketchEncoder",
    "Encoder",
    "Floats",
    "HFEncoder",
    "Vectors",
    "WordRule",
    "make_encoder",
    "words",
]
