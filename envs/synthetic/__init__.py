"""The built-in world: made-up people, their relations, and questions of one to three hops.

Read first: world.py
May import: envs.retrieval.encoders, envs.retrieval.index, envs.retrieval.search, envs.system,
  envs.types
"""

from __future__ import annotations

from research_rl.envs.synthetic.prose import write_pages
from research_rl.envs.synthetic.world import (
    MAX_HOPS,
    RELATIONS,
    WORLD_SPLITS,
    Split,
    SyntheticWorld,
    alias_passage_of,
    builtin_world,
    fact_passage,
    query_of,
    question_of,
)

__all__ = [
    "MAX_HOPS",
    "RELATIONS",
    "WORLD_SPLITS",
    "Split",
    "SyntheticWorld",
    "alias_passage_of",
    "builtin_world",
    "fact_passage",
    "query_of",
    "question_of",
    "write_pages",
]
