"""Learning rules, which a YAML names by their class: from rewards and log-probs to a loss.

Read first: base.py, then grpo.py
May import: agents
"""

from __future__ import annotations

from research_rl.trainers.algorithms.advantages import constant_group_fraction
from research_rl.trainers.algorithms.base import Algorithm
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.algorithms.grpo import CISPO, DAPO, GMPO, GRPO, GSPO, SAPO, DrGRPO
from research_rl.trainers.algorithms.losses import kl_estimate
from research_rl.trainers.algorithms.policy_gradient import AdaptiveKL, Correction, PolicyGradient
from research_rl.trainers.algorithms.ppo import PPO
from research_rl.trainers.algorithms.reinforce import (
    RLOO,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
)
from research_rl.trainers.algorithms.schedule import WarmupDecay
from research_rl.trainers.algorithms.sft import SFT
from research_rl.trainers.algorithms.stability import LLDS, Reinforce, SearchAgentPO
from research_rl.trainers.algorithms.turns import TurnGRPO

__all__ = [
    "CISPO",
    "DAPO",
    "GMPO",
    "GRPO",
    "GSPO",
    "LLDS",
    "PPO",
    "RLOO",
    "SAPO",
    "SFT",
    "AdaptiveKL",
    "Algorithm",
    "Batch",
    "Correction",
    "DrGRPO",
    "PolicyGradient",
    "Reinforce",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
    "SearchAgentPO",
    "TurnGRPO",
    "WarmupDecay",
    "constant_group_fraction",
    "kl_estimate",
]
