"""Learning rules. An Algorithm is a small module; a YAML names it by its class path."""

from research_rl.trainers.algorithms.base import Algorithm
from research_rl.trainers.algorithms.grpo import CISPO, DAPO, GMPO, GRPO, GSPO, SAPO, DrGRPO
from research_rl.trainers.algorithms.policy_gradient import AdaptiveKL, Correction, PolicyGradient
from research_rl.trainers.algorithms.ppo import PPO
from research_rl.trainers.algorithms.reinforce import (
    RLOO,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
)
from research_rl.trainers.algorithms.turns import TurnGRPO

__all__ = [
    "CISPO",
    "DAPO",
    "GMPO",
    "GRPO",
    "GSPO",
    "PPO",
    "RLOO",
    "SAPO",
    "AdaptiveKL",
    "Algorithm",
    "Correction",
    "DrGRPO",
    "PolicyGradient",
    "ReinforcePlusPlus",
    "ReinforcePlusPlusBaseline",
    "TurnGRPO",
]
