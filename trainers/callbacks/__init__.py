"""Callbacks that leave something to look at: curve, rollouts, exported policy.

A config lists them under `trainer.callbacks`, `LearningCurve` for instance.

Read first: base.py
May import: agents, envs, trainers.checkpoint, trainers.progress, trainers.viewer
"""

from __future__ import annotations

from research_rl.trainers.callbacks.base import RunCallback, cosmetic, rollouts_of, run_folder
from research_rl.trainers.callbacks.curve import LearningCurve
from research_rl.trainers.callbacks.export_policy import ExportPolicy
from research_rl.trainers.callbacks.plots import DPI, Curves, health_picture
from research_rl.trainers.callbacks.rollout_log import RolloutLog
from research_rl.trainers.callbacks.send import SendAlong, takes_more_than_numbers

__all__ = [
    "DPI",
    "Curves",
    "ExportPolicy",
    "LearningCurve",
    "RolloutLog",
    "RunCallback",
    "SendAlong",
    "cosmetic",
    "health_picture",
    "rollouts_of",
    "run_folder",
    "takes_more_than_numbers",
]
