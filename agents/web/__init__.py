"""Sampling over HTTP: rollouts from a pool of servers, and a server of our own.

Read first: engine.py, then app.py
May import: agents.engines, agents.methods, agents.policy, agents.types, envs
"""

from __future__ import annotations

from research_rl.agents.web.app import serve_sampling
from research_rl.agents.web.engine import ServerEngine
from research_rl.agents.web.request_queue import RequestQueue

__all__ = [
    "RequestQueue",
    "ServerEngine",
    "serve_sampling",
]
