"""Sampling over HTTP: rollouts from a pool of servers, and a server of our own.

Read first: engine.py, then app.py
May import: agents.engines, agents.methods, agents.policy, agents.types, envs
"""

from __future__ import annotations

from research_rl.agents.web.app import serve
from research_rl.agents.web.desk import Desk
from research_rl.agents.web.engine import ServerEngine

__all__ = [
    "Desk",
    "ServerEngine",
    "serve",
]
