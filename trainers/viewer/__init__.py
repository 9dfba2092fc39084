"""Rollouts as static pages.

Read first: page.py
May import: agents, envs
"""

from __future__ import annotations

from research_rl.trainers.viewer.folder import RolloutFiles

__all__ = [
    "RolloutFiles",
]
