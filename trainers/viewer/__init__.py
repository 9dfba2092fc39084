"""Rollouts as static pages, and the templates of every page.

Read first: page.py, then templates/base.html
May import: agents, envs
"""

from __future__ import annotations

from research_rl.trainers.viewer.folder import RolloutFiles
from research_rl.trainers.viewer.html import html_page, packed
from research_rl.trainers.viewer.page import turn_parts

__all__ = [
    "RolloutFiles",
    "html_page",
    "packed",
    "turn_parts",
]
