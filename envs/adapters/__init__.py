"""Adapters to other trainers and environment hubs, all in text; see docs/plug-in.md.

Read first: choices.py
May import: envs.env, envs.protocols, envs.rewards, envs.synthetic, envs.task, envs.types

Importing this package registers ``ReSearchChoices-v0`` with Gymnasium. No outside library is
imported before an adapter of it is.
"""

from __future__ import annotations

import gymnasium as gym

from research_rl.envs.adapters.choices import ReSearchChoices

__all__ = ["ReSearchChoices"]

if "ReSearchChoices-v0" not in gym.registry:
    gym.register(
        id="ReSearchChoices-v0",
        entry_point="research_rl.envs.adapters.choices:make_choices",
    )
