"""The health of a run: a check for signal, signs of collapse, a monitor, a guard that acts.

Read first: signal.py, then signs.py
May import: agents, envs, trainers.callbacks, trainers.checkpoint, trainers.distributed,
    trainers.measures
"""

from __future__ import annotations

from research_rl.trainers.health.check import NothingToLearnError, SignalCheck
from research_rl.trainers.health.guard import CollapseGuard
from research_rl.trainers.health.monitor import HealthMonitor

__all__ = [
    "CollapseGuard",
    "HealthMonitor",
    "NothingToLearnError",
    "SignalCheck",
]
