"""Evaluation: methods x data sets x models, a row for each question, and a report.

Read first: command.py, then run.py
May import: agents, envs, trainers.audit, trainers.checkpoint, trainers.evaluate.judges,
    trainers.evaluate.measures, trainers.evaluate.report, trainers.prompts, trainers.settings,
    trainers.usage
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.envs.system import lazy

if TYPE_CHECKING:
    from research_rl.trainers.evaluate.command import prepared, reported

__all__ = ["prepared", "reported"]

# a usage error does not wait for torch
__getattr__ = lazy(__name__, {"command": ["prepared", "reported"]})
