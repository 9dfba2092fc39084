"""The health of a run: a check for signal, signs of collapse, a monitor, a guard that acts.

Read first: signal.py, then signs.py
May import: agents, envs, trainers.callbacks, trainers.checkpoint, trainers.collect,
    trainers.distributed, trainers.measures, trainers.progress, trainers.sampler
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.envs.system import lazy

if TYPE_CHECKING:
    from research_rl.trainers.health.check import NothingToLearnError, SignalCheck
    from research_rl.trainers.health.guard import CollapseGuard
    from research_rl.trainers.health.monitor import HealthMonitor
    from research_rl.trainers.health.rules import RULES, Rule

__all__ = [
    "RULES",
    "CollapseGuard",
    "HealthMonitor",
    "NothingToLearnError",
    "Rule",
    "SignalCheck",
]

# who only reads the rules does not wait for Lightning
__getattr__ = lazy(
    __name__,
    {
        "check": ["NothingToLearnError", "SignalCheck"],
        "guard": ["CollapseGuard"],
        "monitor": ["HealthMonitor"],
        "rules": ["RULES", "Rule"],
    },
)
