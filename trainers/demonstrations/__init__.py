"""Demonstrations: rollouts to imitate, from gold evidence, a policy or a teacher.

Read first: gold.py, then module.py
May import: agents, envs, trainers.algorithms, trainers.cli, trainers.credit, trainers.data,
    trainers.distributed, trainers.learner, trainers.measures, trainers.module, trainers.progress,
    trainers.settings, trainers.usage
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.envs.system import lazy

if TYPE_CHECKING:
    from research_rl.trainers.demonstrations.data import DemonstrationDataModule
    from research_rl.trainers.demonstrations.module import SFTModule

__all__ = ["DemonstrationDataModule", "SFTModule"]

# `research collect --help` does not wait for Lightning
__getattr__ = lazy(__name__, {"data": ["DemonstrationDataModule"], "module": ["SFTModule"]})
