"""Retrieval over HTTP: a client and a server for every wire dialect of the field.

Read first: dialects.py
May import: envs.retrieval.index, envs.system, envs.types, envs.web
"""

from __future__ import annotations

from research_rl.envs.retrieval.web.client import RemoteRetriever
from research_rl.envs.retrieval.web.server import add_serve_arguments, run_serve

__all__ = [
    "RemoteRetriever",
    "add_serve_arguments",
    "run_serve",
]
