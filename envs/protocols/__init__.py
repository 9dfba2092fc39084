"""The language of a rollout: protocols, their prompts, and what an action means.

Read first: base.py, then tags.py and calls.py
May import: envs.protocols.dialects, envs.system, envs.types
"""

from __future__ import annotations

from research_rl.envs.protocols.actions import (
    BUDGET_USED,
    NOTHING_FOUND,
    NOTHING_TO_SEARCH,
    Action,
    Answer,
    Found,
    Kind,
    Malformed,
    Part,
    Piece,
    Search,
    Segment,
)
from research_rl.envs.protocols.base import Protocol
from research_rl.envs.protocols.boxes import answer_content, last_boxed
from research_rl.envs.protocols.calls import CallProtocol
from research_rl.envs.protocols.choices import (
    PROTOCOLS,
    get_prompt,
    get_protocol,
    prompt_about,
    spelled_out,
)
from research_rl.envs.protocols.dialects import (
    RESEARCH,
    STOP,
    escape_tags,
    format_error,
    parse_action,
    parts,
    render_result,
    result_content,
)
from research_rl.envs.protocols.prompts import (
    BASE,
    INSTRUCT,
    Opened,
    Prompt,
    PromptChoice,
    opened_by,
)
from research_rl.envs.protocols.tags import TagProtocol

__all__ = [
    "BASE",
    "BUDGET_USED",
    "INSTRUCT",
    "NOTHING_FOUND",
    "NOTHING_TO_SEARCH",
    "PROTOCOLS",
    "RESEARCH",
    "STOP",
    "Action",
    "Answer",
    "CallProtocol",
    "Found",
    "Kind",
    "Malformed",
    "Opened",
    "Part",
    "Piece",
    "Prompt",
    "PromptChoice",
    "Protocol",
    "Search",
    "Segment",
    "TagProtocol",
    "answer_content",
    "escape_tags",
    "format_error",
    "get_prompt",
    "get_protocol",
    "last_boxed",
    "opened_by",
    "parse_action",
    "parts",
    "prompt_about",
    "render_result",
    "result_content",
    "spelled_out",
]
