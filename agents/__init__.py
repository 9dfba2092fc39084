"""Language-model agents: strings outside, token ids inside."""

from __future__ import annotations

from research_rl.agents.cached import CachedEngine, EngineStats
from research_rl.agents.engine import ReferenceEngine
from research_rl.agents.generate import (
    Generation,
    Generator,
    LocalGenerator,
    ModelUnavailable,
)
from research_rl.agents.ircot import IRCoT
from research_rl.agents.iter_retgen import IterRetGen
from research_rl.agents.naive import NaiveGeneration, NaiveRAG
from research_rl.agents.openai_api import OpenAIGenerator
from research_rl.agents.policy import LMPolicy, LoraConfig, PolicyConfig, PolicyOutput, Reference
from research_rl.agents.research import Agent, Prediction, ReSearchAgent, Step
from research_rl.agents.rollout import collect_rollouts
from research_rl.agents.sampling import seed_of
from research_rl.agents.served import ReSearch, ServedReSearchAgent
from research_rl.agents.server import ServerEngine
from research_rl.agents.templates import Template
from research_rl.agents.types import Engine, OnStop, Rollout, SamplingParams, Sequence

__all__ = [
    "Agent",
    "CachedEngine",
    "Engine",
    "EngineStats",
    "Generation",
    "Generator",
    "IRCoT",
    "IterRetGen",
    "LMPolicy",
    "LocalGenerator",
    "LoraConfig",
    "ModelUnavailable",
    "NaiveGeneration",
    "NaiveRAG",
    "OnStop",
    "OpenAIGenerator",
    "PolicyConfig",
    "PolicyOutput",
    "Prediction",
    "ReSearch",
    "ReSearchAgent",
    "Reference",
    "ReferenceEngine",
    "Rollout",
    "SamplingParams",
    "Sequence",
    "ServedReSearchAgent",
    "ServerEngine",
    "Step",
    "Template",
    "collect_rollouts",
    "seed_of",
]
