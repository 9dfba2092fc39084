"""Rewards: how answers are compared, the presets, sums of terms, and a linter for all of them.

Read first: presets.py
May import: envs.protocols, envs.rewards.terms, envs.system, envs.types
"""

from __future__ import annotations

from research_rl.envs.rewards.answers import (
    cover_exact_match,
    exact_match,
    f1_score,
    normalize_answer,
)
from research_rl.envs.rewards.choose import PRESETS, get_reward
from research_rl.envs.rewards.fair import fair_scores
from research_rl.envs.rewards.lint import load_reward
from research_rl.envs.rewards.presets import (
    FORMAT_REWARD,
    CoverReward,
    DefaultReward,
    ExactMatchReward,
    PaperCodeReward,
    PaperReward,
    RewardFunction,
)
from research_rl.envs.rewards.terms import RewardTerm, RewardTerms
from research_rl.envs.rewards.verdict import judged

__all__ = [
    "FORMAT_REWARD",
    "PRESETS",
    "CoverReward",
    "DefaultReward",
    "ExactMatchReward",
    "PaperCodeReward",
    "PaperReward",
    "RewardFunction",
    "RewardTerm",
    "RewardTerms",
    "cover_exact_match",
    "exact_match",
    "f1_score",
    "fair_scores",
    "get_reward",
    "judged",
    "load_reward",
    "normalize_answer",
]
