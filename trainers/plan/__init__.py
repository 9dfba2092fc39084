"""`research plan`: memory and time of a run before it starts.

It reads the shape of a model and no weights, so a laptop can plan a run of eight GPUs:
`research plan --config research_7b --devices 8 --device h200`.

Read first: command.py
May import: agents, envs, trainers.algorithms, trainers.cli, trainers.settings, trainers.usage,
    trainers.warmstart
"""

from __future__ import annotations

from research_rl.trainers.plan.command import parsed

__all__ = ["parsed"]
