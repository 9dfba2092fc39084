"""HTTP for all three packages: a client that tries again, a pool of urls, a server.

Read first: client.py
May import: nothing of ours
"""

from __future__ import annotations

from research_rl.envs.web.client import (
    RefusedByServerError,
    TooLargeError,
    TransientError,
    Transport,
    base_url,
)
from research_rl.envs.web.counters import Count, ServerCounters, metrics_reply
from research_rl.envs.web.endpoints import Endpoint, Endpoints, NoAnswerError
from research_rl.envs.web.gate import Gate
from research_rl.envs.web.keys import (
    KEY_VARIABLE,
    SERVER_KEY_VARIABLE,
    key_for,
    name_servers,
    server_key,
    withhold_keys,
)
from research_rl.envs.web.server import (
    BodyBudget,
    Refused,
    ServerThread,
    answered,
    check_host,
    check_installed,
    check_json_type,
    check_key,
    json_body,
    listen,
    make_app,
    make_server,
    refusal,
    still_there,
    warn_if_open,
    within,
)

__all__ = [
    "KEY_VARIABLE",
    "SERVER_KEY_VARIABLE",
    "BodyBudget",
    "Count",
    "Endpoint",
    "Endpoints",
    "Gate",
    "NoAnswerError",
    "Refused",
    "RefusedByServerError",
    "ServerCounters",
    "ServerThread",
    "TooLargeError",
    "TransientError",
    "Transport",
    "answered",
    "base_url",
    "check_host",
    "check_installed",
    "check_json_type",
    "check_key",
    "json_body",
    "key_for",
    "listen",
    "make_app",
    "make_server",
    "metrics_reply",
    "name_servers",
    "refusal",
    "server_key",
    "still_there",
    "warn_if_open",
    "withhold_keys",
    "within",
]
