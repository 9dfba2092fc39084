"""The commands as functions: `train`, `evaluate` and `ask`, for notebooks and scripts.

They make the same objects as the command line, from the same configs. Users import them from
`research_rl` itself.

Read first: run.py
May import: agents, envs, trainers.agent, trainers.cli, trainers.evaluate, trainers.settings
"""

from __future__ import annotations

from research_rl.trainers.api.configs import ConfigLike, command_words
from research_rl.trainers.api.run import Evaluated, Trained, ask, evaluate, train

__all__ = ["ConfigLike", "Evaluated", "Trained", "ask", "command_words", "evaluate", "train"]
