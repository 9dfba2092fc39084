"""Callbacks that leave something to look at: curve, rollouts, exported policy.

A config lists them under `trainer.callbacks`, `LearningCurve` for instance.

Read first: base.py
May import: agents, envs, trainers.checkpoint, trainers.progress, trainers.viewer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.envs.system import lazy

if TYPE_CHECKING:
    from research_rl.trainers.callbacks.base import (
        RunCallback,
        cosmetic,
        learns_from_rewards,
        rollouts_of,
        run_folder,
    )
    from research_rl.trainers.callbacks.curve import LearningCurve
    from research_rl.trainers.callbacks.export_policy import ExportPolicy
    from research_rl.trainers.callbacks.plots import (
        DPI,
        Curve,
        Curves,
        compared_figure,
        curves_figure,
        health_figure,
        health_picture,
        read_metrics,
    )
    from research_rl.trainers.callbacks.rollout_log import RolloutLog
    from research_rl.trainers.callbacks.send import SendAlong, takes_more_than_numbers
    from research_rl.trainers.callbacks.svg import (
        Picture,
        drawable,
        picture_of,
        save_picture,
        svg_of,
    )

__all__ = [
    "DPI",
    "Curve",
    "Curves",
    "ExportPolicy",
    "LearningCurve",
    "Picture",
    "RolloutLog",
    "RunCallback",
    "SendAlong",
    "compared_figure",
    "cosmetic",
    "curves_figure",
    "drawable",
    "health_figure",
    "health_picture",
    "learns_from_rewards",
    "picture_of",
    "read_metrics",
    "rollouts_of",
    "run_folder",
    "save_picture",
    "svg_of",
    "takes_more_than_numbers",
]

# pictures of a finished run do not wait for Lightning
__getattr__ = lazy(
    __name__,
    {
        "base": ["RunCallback", "cosmetic", "learns_from_rewards", "rollouts_of", "run_folder"],
        "curve": ["LearningCurve"],
        "export_policy": ["ExportPolicy"],
        "plots": [
            *("DPI", "Curve", "Curves", "compared_figure", "curves_figure"),
            *("health_figure", "health_picture", "read_metrics"),
        ],
        "rollout_log": ["RolloutLog"],
        "send": ["SendAlong", "takes_more_than_numbers"],
        "svg": ["Picture", "drawable", "picture_of", "save_picture", "svg_of"],
    },
)
