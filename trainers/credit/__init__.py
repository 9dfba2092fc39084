"""Credit for single turns, by what each search contributed, and prices that a group decides.

Read first: turns.py
May import: agents, envs, trainers.measures
"""

from __future__ import annotations

from research_rl.trainers.credit.counterfactual import CounterfactualCredit
from research_rl.trainers.credit.price import Price, SearchPrice
from research_rl.trainers.credit.turns import Credit, InformationGain, StepGroups, TurnRewards

__all__ = [
    "CounterfactualCredit",
    "Credit",
    "InformationGain",
    "Price",
    "SearchPrice",
    "StepGroups",
    "TurnRewards",
]
