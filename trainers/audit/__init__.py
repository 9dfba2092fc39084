"""Audit of questions and their corpus before any training: what can be found, what is known before.

Read first: command.py
May import: agents, envs
"""

from __future__ import annotations

from research_rl.trainers.audit.ceiling import AUDIT, ceiling_of, unanswerable
from research_rl.trainers.audit.coverage import UNTELLING, Tokens, stands_in, tokens_of
from research_rl.trainers.audit.overlap import overlaps
from research_rl.trainers.audit.reach import sub_questions

__all__ = [
    "AUDIT",
    "UNTELLING",
    "Tokens",
    "ceiling_of",
    "overlaps",
    "stands_in",
    "sub_questions",
    "tokens_of",
    "unanswerable",
]
