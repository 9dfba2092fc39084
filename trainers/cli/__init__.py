"""The command `research`, and the subcommands that have no room of their own.

`research fit` is in fit.py. Larger commands, such as `research evaluate`, have rooms of their own;
dispatch.py lists where each one is.

Read first: dispatch.py
May import: agents, envs, trainers.agent, trainers.algorithms, trainers.callbacks,
    trainers.checkpoint, trainers.credit, trainers.data, trainers.distributed, trainers.health,
    trainers.module, trainers.overview, trainers.progress, trainers.recorder, trainers.settings,
    trainers.usage, trainers.warmstart
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.envs.system import lazy
from research_rl.trainers.cli.dispatch import COMMANDS, main

if TYPE_CHECKING:
    from research_rl.trainers.cli.fit import ResearchCLI, run
    from research_rl.trainers.cli.start import set_threads

__all__ = ["COMMANDS", "ResearchCLI", "main", "run", "set_threads"]

# other commands do not wait for Lightning
__getattr__ = lazy(__name__, {"fit": ["ResearchCLI", "run"], "start": ["set_threads"]})
