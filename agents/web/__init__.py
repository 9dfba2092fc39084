"""Sampling over HTTP: rollouts from a pool of servers, and a server of our own.

Read first: engine.py, then app.py
May import: agents.engines, agents.methods, agents.policy, agents.types, envs
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.agents.web.ending_rows import ending_engine
from research_rl.agents.web.engine import ServerEngine
from research_rl.agents.web.jobs import JobQueue, QueuedJob, QueueFullError
from research_rl.agents.web.request_queue import RequestQueue
from research_rl.envs.system import lazy

if TYPE_CHECKING:
    from research_rl.agents.web.app import serve_sampling

__all__ = [
    "JobQueue",
    "QueueFullError",
    "QueuedJob",
    "RequestQueue",
    "ServerEngine",
    "ending_engine",
    "serve_sampling",
]

# FastAPI is imported when a server starts
__getattr__ = lazy(__name__, {"app": ["serve_sampling"]})
