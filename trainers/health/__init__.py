"""The health of a run: signs of a collapse, a monitor that logs them and a guard that acts.

Read first: signs.py
May import: agents, envs, trainers.callbacks, trainers.checkpoint, trainers.distributed,
    trainers.measures
"""

from __future__ import annotations

from research_rl.trainers.health.guard import CollapseGuard
from research_rl.trainers.health.monitor import HealthMonitor

__all__ = [
    "CollapseGuard",
    "HealthMonitor",
]
