"""Methods that answer questions: ReSearch itself and the baselines it is compared with.

Read first: research.py
May import: agents.engines, agents.policy, agents.rollout, agents.types, envs
"""

from __future__ import annotations

from research_rl.agents.methods.answers import behind_thoughts
from research_rl.agents.methods.generators import (
    Generation,
    Generator,
    LocalGenerator,
    ModelInput,
    load_policy,
)
from research_rl.agents.methods.ircot import IRCoT
from research_rl.agents.methods.iter_retgen import IterRetGen
from research_rl.agents.methods.naive import NaiveGeneration, NaiveRAG
from research_rl.agents.methods.openai_generator import OPENAI_KEY_VARIABLE, OpenAIGenerator
from research_rl.agents.methods.research import (
    Agent,
    Message,
    Prediction,
    ReSearchAgent,
    opened_of,
)
from research_rl.agents.methods.sentences import split_sentences
from research_rl.agents.methods.served import ReSearch, ServedReSearchAgent
from research_rl.agents.methods.templates import Template

__all__ = [
    "OPENAI_KEY_VARIABLE",
    "Agent",
    "Generation",
    "Generator",
    "IRCoT",
    "IterRetGen",
    "LocalGenerator",
    "Message",
    "ModelInput",
    "NaiveGeneration",
    "NaiveRAG",
    "OpenAIGenerator",
    "Prediction",
    "ReSearch",
    "ReSearchAgent",
    "ServedReSearchAgent",
    "Template",
    "behind_thoughts",
    "load_policy",
    "opened_of",
    "split_sentences",
]
