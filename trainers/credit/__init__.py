"""Credit for single turns: what each search was worth.

Read first: turns.py
May import: agents, envs
"""

from __future__ import annotations

from research_rl.trainers.credit.counterfactual import CounterfactualCredit
from research_rl.trainers.credit.turns import Credit, InformationGain, StepGroups, TurnRewards

__all__ = [
    "CounterfactualCredit",
    "Credit",
    "InformationGain",
    "StepGroups",
    "TurnRewards",
]
