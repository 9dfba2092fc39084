"""Engines: where tokens are sampled, turn by turn.

Read first: reference.py, then cached.py
May import: agents.kernels, agents.machine, agents.policy, agents.proofs, agents.types
"""

from __future__ import annotations

from research_rl.agents.engines.cached import CachedEngine, prefill_tokens
from research_rl.agents.engines.reference import ReferenceEngine
from research_rl.agents.engines.sampling import check_params, check_trainable, seed_at, seed_of
from research_rl.agents.engines.slot_run import MAX_SLOTS, EngineStats
from research_rl.agents.engines.streaming import StreamingEngine
from research_rl.agents.engines.turns import TurnEnd, begin, resume
from research_rl.agents.engines.turnwise import TurnwiseEngine, engine_for

__all__ = [
    "MAX_SLOTS",
    "CachedEngine",
    "EngineStats",
    "ReferenceEngine",
    "StreamingEngine",
    "TurnEnd",
    "TurnwiseEngine",
    "begin",
    "check_params",
    "check_trainable",
    "engine_for",
    "prefill_tokens",
    "resume",
    "seed_at",
    "seed_of",
]
