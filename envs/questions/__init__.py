"""Question files: every published layout, read, fetched, converted.

Read first: read.py
May import: envs.system, envs.types
"""

from __future__ import annotations

from research_rl.envs.questions.bad_rows import BadRows, QuestionError
from research_rl.envs.questions.cli import main as data_command
from research_rl.envs.questions.compressed import is_compressed, open_bytes
from research_rl.envs.questions.containers import PASSAGE_COLUMNS, container_of, file_rows
from research_rl.envs.questions.files import (
    SPLIT_MARK,
    find_split,
    hub_rows,
    is_hub_name,
    is_saved_data_set,
    open_rows,
)
from research_rl.envs.questions.hops import known_hops
from research_rl.envs.questions.paragraphs import passages_in
from research_rl.envs.questions.read import content_hash, question_from_dict, read_questions

__all__ = [
    "PASSAGE_COLUMNS",
    "SPLIT_MARK",
    "BadRows",
    "QuestionError",
    "container_of",
    "content_hash",
    "data_command",
    "file_rows",
    "find_split",
    "hub_rows",
    "is_compressed",
    "is_hub_name",
    "is_saved_data_set",
    "known_hops",
    "open_bytes",
    "open_rows",
    "passages_in",
    "question_from_dict",
    "read_questions",
]
