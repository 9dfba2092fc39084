"""The dialects: one file each, a class of facts about its tags and layout.

Read first: research.py, then hermes.py
May import: envs.protocols.actions, envs.protocols.boxes, envs.protocols.calls,
    envs.protocols.prompts, envs.protocols.tags, envs.types
"""

from __future__ import annotations

from research_rl.envs.protocols.dialects.autorefine import AutoRefine
from research_rl.envs.protocols.dialects.hermes import Hermes
from research_rl.envs.protocols.dialects.llama3 import Llama3
from research_rl.envs.protocols.dialects.o2 import O2
from research_rl.envs.protocols.dialects.qwen3_coder import Qwen3Coder
from research_rl.envs.protocols.dialects.r1_searcher import R1Searcher
from research_rl.envs.protocols.dialects.recall import ReCall
from research_rl.envs.protocols.dialects.research import (
    RESEARCH,
    STOP,
    ReSearchProtocol,
    escape_tags,
    format_error,
    parse_action,
    parts,
    render_result,
    result_content,
)
from research_rl.envs.protocols.dialects.search_r1 import SearchR1
from research_rl.envs.protocols.dialects.zero_search import ZeroSearch

__all__ = [
    "O2",
    "RESEARCH",
    "STOP",
    "AutoRefine",
    "Hermes",
    "Llama3",
    "Qwen3Coder",
    "R1Searcher",
    "ReCall",
    "ReSearchProtocol",
    "SearchR1",
    "ZeroSearch",
    "escape_tags",
    "format_error",
    "parse_action",
    "parts",
    "render_result",
    "result_content",
]
