"""Language-model agents: strings outside, token ids inside.

Read first: types.py, then rollout.py
May import: agents.policy, envs
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.envs.system import lazy

if TYPE_CHECKING:
    from research_rl.agents.engines import (
        CachedEngine,
        EngineStats,
        ReferenceEngine,
        TurnwiseEngine,
        seed_of,
    )
    from research_rl.agents.machine import (
        chosen_dtype,
        cpu_abilities,
        fast_dtype,
        warn_if_slow,
    )
    from research_rl.agents.methods import (
        Agent,
        Generation,
        Generator,
        IRCoT,
        IterRetGen,
        LocalGenerator,
        Message,
        NaiveGeneration,
        NaiveRAG,
        OpenAIGenerator,
        Prediction,
        ReSearch,
        ReSearchAgent,
        ServedReSearchAgent,
        Template,
    )
    from research_rl.agents.policy import (
        LMPolicy,
        LoraConfig,
        PolicyConfig,
        PolicyOutput,
        Reference,
    )
    from research_rl.agents.rollout import Play, Watch, collect_rollouts, vector_rows
    from research_rl.agents.types import (
        Engine,
        ModelUnavailable,
        OnStop,
        Rollout,
        SamplingParams,
        Sequence,
        TextOnly,
    )
    from research_rl.agents.web import ServerEngine

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
    "Message",
    "ModelUnavailable",
    "NaiveGeneration",
    "NaiveRAG",
    "OnStop",
    "OpenAIGenerator",
    "Play",
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
    "Template",
    "TextOnly",
    "TurnwiseEngine",
    "Watch",
    "chosen_dtype",
    "collect_rollouts",
    "cpu_abilities",
    "fast_dtype",
    "seed_of",
    "vector_rows",
    "warn_if_slow",
]

# torch is imported with the first name that needs it
__getattr__ = lazy(
    __name__,
    {
        "engines": [
            "CachedEngine",
            "EngineStats",
            "ReferenceEngine",
            "TurnwiseEngine",
            "seed_of",
        ],
        "methods": [
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
            "Message",
            "Template",
        ],
        "machine": ["chosen_dtype", "cpu_abilities", "fast_dtype", "warn_if_slow"],
        "policy": ["LMPolicy", "LoraConfig", "PolicyConfig", "PolicyOutput", "Reference"],
        "rollout": ["Play", "Watch", "collect_rollouts", "vector_rows"],
        "types": [
            "Engine",
            "ModelUnavailable",
            "OnStop",
            "Rollout",
            "SamplingParams",
            "Sequence",
            "TextOnly",
        ],
        "web": ["ServerEngine"],
    },
)
