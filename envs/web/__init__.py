"""HTTP for all three packages: a client that tries again, a pool of urls, a server.

Read first: client.py
May import: nothing of ours
"""

from __future__ import annotations

from research_rl.envs.web.client import RefusedByServerError, TransientError, Transport
from research_rl.envs.web.endpoints import Endpoint, Endpoints
from research_rl.envs.web.server import ServerThread, listen

__all__ = [
    "Endpoint",
    "Endpoints",
    "RefusedByServerError",
    "ServerThread",
    "TransientError",
    "Transport",
    "listen",
]
