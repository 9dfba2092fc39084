"""Rollouts as static pages, and the templates of every page.

Read first: page.py, then templates/base.html
May import: agents, envs
"""

from __future__ import annotations

from research_rl.trainers.viewer.folder import RolloutFiles
from research_rl.trainers.viewer.html import html_page
from research_rl.trainers.viewer.page import Part, result_part, turn_parts

__all__ = [
    "Part",
    "RolloutFiles",
    "html_page",
    "result_part",
    "turn_parts",
]
