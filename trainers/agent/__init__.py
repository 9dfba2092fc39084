"""The agent for its users: a question in, its episode and answer out, in the terminal or over HTTP.

Read first: asker.py, then app.py
May import: agents, envs, trainers.audit, trainers.settings, trainers.viewer
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.envs.system import lazy
from research_rl.trainers.agent.asked import (
    QUICKSTART,
    Asked,
    add_agent_options,
    check_mcp,
    make_asker,
    resolve,
    tell_searched,
)

if TYPE_CHECKING:
    from research_rl.trainers.agent.app import (
        AgentSettings,
        BackgroundAgentServer,
        serve_agent,
    )
    from research_rl.trainers.agent.asker import Asker, Stretch
    from research_rl.trainers.agent.events import answer_told, why_none
    from research_rl.trainers.agent.mcp_tool import speak_mcp
    from research_rl.trainers.agent.page import agent_page
    from research_rl.trainers.agent.question_queue import Inquiry, QuestionQueue

__all__ = [
    "QUICKSTART",
    "AgentSettings",
    "Asked",
    "Asker",
    "BackgroundAgentServer",
    "Inquiry",
    "QuestionQueue",
    "Stretch",
    "add_agent_options",
    "agent_page",
    "answer_told",
    "check_mcp",
    "make_asker",
    "resolve",
    "serve_agent",
    "speak_mcp",
    "tell_searched",
    "why_none",
]

# torch, FastAPI and mcp are imported with the first name that needs them
__getattr__ = lazy(
    __name__,
    {
        "app": ["AgentSettings", "BackgroundAgentServer", "serve_agent"],
        "asker": ["Asker", "Stretch"],
        "events": ["answer_told", "why_none"],
        "mcp_tool": ["speak_mcp"],
        "page": ["agent_page"],
        "question_queue": ["Inquiry", "QuestionQueue"],
    },
)
