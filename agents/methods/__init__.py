"""Methods that answer questions: ReSearch itself and the baselines it is compared with.

Read first: research.py
May import: agents.engines, agents.policy, agents.rollout, agents.types, envs
"""

from __future__ import annotations

from research_rl.agents.methods.generators import Generation, Generator, LocalGenerator, load_policy
from research_rl.agents.methods.ircot import IRCoT
from research_rl.agents.methods.iter_retgen import IterRetGen
from research_rl.agents.methods.naive import NaiveGeneration, NaiveRAG
from research_rl.agents.methods.openai_generator import KEY_VARIABLE, OpenAIGenerator
from research_rl.agents.methods.research import Agent, Prediction, ReSearchAgent, Step
from research_rl.agents.methods.served import ReSearch, ServedReSearchAgent
from research_rl.agents.methods.templates import Template

__all__ = [
    "KEY_VARIABLE",
    "Agent",
    "Generation",
    "Generator",
    "IRCoT",
    "IterRetGen",
    "LocalGenerator",
    "NaiveGeneration",
    "NaiveRAG",
    "OpenAIGenerator",
    "Prediction",
    "ReSearch",
    "ReSearchAgent",
    "ServedReSearchAgent",
    "Step",
    "Template",
    "load_policy",
]
