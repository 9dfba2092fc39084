"""Text environments: they speak strings, and know neither tokens nor tensors.

Importing this package registers ``ReSearch-v0`` with Gymnasium.
"""

from __future__ import annotations

import gymnasium as gym

from research_rl.envs.env import ReSearchEnv
from research_rl.envs.episode import Episode, Rules, Step
from research_rl.envs.prompts import BASE, INSTRUCT, Prompt, get_prompt
from research_rl.envs.protocol import Answer, Malformed, Search, Segment, parse_action
from research_rl.envs.rewards import (
    DefaultReward,
    PaperCodeReward,
    PaperReward,
    RewardFunction,
    get_reward,
)
from research_rl.envs.spaces import UnicodeText
from research_rl.envs.types import Passage, Question, Retriever, RetrieverUnavailable, Reward
from research_rl.envs.vector import ReSearchVectorEnv
from research_rl.envs.wrappers import Transcript, fork

__all__ = [
    "BASE",
    "INSTRUCT",
    "Answer",
    "DefaultReward",
    "Episode",
    "Malformed",
    "PaperCodeReward",
    "PaperReward",
    "Passage",
    "Prompt",
    "Question",
    "ReSearchEnv",
    "ReSearchVectorEnv",
    "Retriever",
    "RetrieverUnavailable",
    "Reward",
    "RewardFunction",
    "Rules",
    "Search",
    "Segment",
    "Step",
    "Transcript",
    "UnicodeText",
    "fork",
    "get_prompt",
    "get_reward",
    "parse_action",
]

if "ReSearch-v0" not in gym.registry:
    gym.register(
        id="ReSearch-v0",
        entry_point="research_rl.envs.env:ReSearchEnv",
        vector_entry_point="research_rl.envs.vector:ReSearchVectorEnv",
    )
