"""The language of a rollout: its tags, its prompts, and what an action means.

Read first: tags.py
May import: envs.types
"""

from __future__ import annotations

from research_rl.envs.protocols.prompts import (
    BASE,
    INSTRUCT,
    Prompt,
    PromptChoice,
    get_prompt,
    prompt_about,
)
from research_rl.envs.protocols.tags import (
    BUDGET_USED,
    NOTHING_FOUND,
    NOTHING_TO_SEARCH,
    STOP,
    Action,
    Answer,
    Kind,
    Malformed,
    Part,
    Search,
    Segment,
    answer_content,
    escape_tags,
    format_error,
    last_boxed,
    parse_action,
    parts,
    render_result,
    result_content,
)

__all__ = [
    "BASE",
    "BUDGET_USED",
    "INSTRUCT",
    "NOTHING_FOUND",
    "NOTHING_TO_SEARCH",
    "STOP",
    "Action",
    "Answer",
    "Kind",
    "Malformed",
    "Part",
    "Prompt",
    "PromptChoice",
    "Search",
    "Segment",
    "answer_content",
    "escape_tags",
    "format_error",
    "get_prompt",
    "last_boxed",
    "parse_action",
    "parts",
    "prompt_about",
    "render_result",
    "result_content",
]
