"""Runs as pages and lines: one run, several beside each other, all of a folder.

A run's folder may be somebody else's: of its files text and numbers are read and nothing else.

Read first: folder.py, then page.py
May import: envs, trainers.callbacks, trainers.evaluate.measures, trainers.health,
    trainers.settings, trainers.viewer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.envs.system import lazy

if TYPE_CHECKING:
    from research_rl.trainers.overview.callback import RunPage
    from research_rl.trainers.overview.compare import (
        comparison_of,
        comparison_page,
        comparison_text,
    )
    from research_rl.trainers.overview.folder import RunFolder, is_run
    from research_rl.trainers.overview.listing import runs_in, runs_table
    from research_rl.trainers.overview.page import write_run_page
    from research_rl.trainers.overview.shipped import nearest_config

__all__ = [
    "RunFolder",
    "RunPage",
    "comparison_of",
    "comparison_page",
    "comparison_text",
    "is_run",
    "nearest_config",
    "runs_in",
    "runs_table",
    "write_run_page",
]

# a page of a finished run does not wait for Lightning
__getattr__ = lazy(
    __name__,
    {
        "callback": ["RunPage"],
        "compare": ["comparison_of", "comparison_page", "comparison_text"],
        "folder": ["RunFolder", "is_run"],
        "listing": ["runs_in", "runs_table"],
        "page": ["write_run_page"],
        "shipped": ["nearest_config"],
    },
)
