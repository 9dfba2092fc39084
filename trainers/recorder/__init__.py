"""The flight recorder: training rollouts, recorded so that they can be played again.

Read first: callback.py
May import: agents, envs, trainers.callbacks, trainers.checkpoint, trainers.credit,
    trainers.distributed, trainers.settings
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.envs.system import lazy

if TYPE_CHECKING:
    from research_rl.trainers.recorder.callback import FlightRecorder

__all__ = ["FlightRecorder"]

# `research replay --help` does not wait for Lightning
__getattr__ = lazy(__name__, {"callback": ["FlightRecorder"]})
