"""Audit of questions and their corpus before any training: what can be found, what is known before.

Read first: command.py
May import: agents, envs, trainers.evaluate.measures
"""

from __future__ import annotations

from research_rl.trainers.audit.ceiling import AUDIT, ceiling_of, unanswerable

__all__ = [
    "AUDIT",
    "ceiling_of",
    "unanswerable",
]
