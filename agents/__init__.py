"""Language-model agents: strings outside, token ids inside."""

from __future__ import annotations

from research_rl.agents.cached import CachedEngine, EngineStats
from research_rl.agents.engine import ReferenceEngine
from research_rl.agents.policy import LMPolicy, LoraConfig, PolicyConfig, PolicyOutput, Reference
from research_rl.agents.research import Agent, Prediction, ReSearchAgent, Step
from research_rl.agents.rollout import collect_rollouts
from research_rl.agents.sampling import seed_of
from research_rl.agents.types import Engine, OnStop, Rollout, SamplingParams, Sequence

__all__ = [
    "Agent",
    "CachedEngine",
    "Engine",
    "EngineStats",
    "LMPolicy",
    "LoraConfig",
    "OnStop",
    "PolicyConfig",
    "PolicyOutput",
    "Prediction",
    "ReSearchAgent",
    "Reference",
    "ReferenceEngine",
    "Rollout",
    "SamplingParams",
    "Sequence",
    "Step",
    "collect_rollouts",
    "seed_of",
]
