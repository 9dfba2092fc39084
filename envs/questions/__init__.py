"""Question files: every published layout, read, fetched, converted.

Read first: read.py
May import: envs.system, envs.types
"""

from __future__ import annotations

from research_rl.envs.questions.files import QuestionError, find_split, hub_rows, is_hub_name
from research_rl.envs.questions.read import question_from_dict, read_questions

__all__ = [
    "QuestionError",
    "find_split",
    "hub_rows",
    "is_hub_name",
    "question_from_dict",
    "read_questions",
]
