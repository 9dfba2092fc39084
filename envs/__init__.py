"""Text environments: questions in, search results and rewards out; no tokens, no tensors.

Importing this package registers ``ReSearch-v0`` with Gymnasium.

Read first: env.py, then episode.py
May import: envs.protocols, envs.questions, envs.retrieval.index, envs.rewards, envs.synthetic,
    envs.system
"""

from __future__ import annotations

import gymnasium as gym

from research_rl.envs.env import ReSearchEnv
from research_rl.envs.episode import Episode, Rules, Transition
from research_rl.envs.protocols import (
    BASE,
    INSTRUCT,
    Answer,
    Malformed,
    Prompt,
    Search,
    Segment,
    get_prompt,
    parse_action,
)
from research_rl.envs.render import TextStyle, paint, shows_colour
from research_rl.envs.rewards import (
    DefaultReward,
    PaperCodeReward,
    PaperReward,
    RewardFunction,
    get_reward,
)
from research_rl.envs.spaces import UnicodeText
from research_rl.envs.system import printable
from research_rl.envs.types import (
    UNANSWERABLE,
    Passage,
    Question,
    Retriever,
    RetrieverUnavailable,
    Reward,
    passage_title,
    search_checked,
)
from research_rl.envs.vector import ReSearchVectorEnv
from research_rl.envs.wrappers import Transcript, fork

__all__ = [
    "BASE",
    "INSTRUCT",
    "UNANSWERABLE",
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
    "TextStyle",
    "Transcript",
    "Transition",
    "UnicodeText",
    "fork",
    "get_prompt",
    "get_reward",
    "paint",
    "parse_action",
    "passage_title",
    "printable",
    "search_checked",
    "shows_colour",
]

# Gymnasium 1.4.0 reads no entry points of plugins, so importing this registers the environment; and
# it warns where one is registered twice, as a reload of this module would.
if "ReSearch-v0" not in gym.registry:
    gym.register(
        id="ReSearch-v0",
        entry_point="research_rl.envs.env:ReSearchEnv",
        vector_entry_point="research_rl.envs.vector:ReSearchVectorEnv",
    )
