"""Questions made of an index: proposed with or without a model, checked without one.

Read first: checks.py, then make.py
May import: agents, envs, trainers.audit
"""

from __future__ import annotations

from research_rl.trainers.make_questions.checks import REASONS, IndexChecks, Limits, form_of
from research_rl.trainers.make_questions.drafts import Draft, Hop, Texts
from research_rl.trainers.make_questions.facts import Facts
from research_rl.trainers.make_questions.given import GivenQuestions
from research_rl.trainers.make_questions.make import MakingPlan, make_questions
from research_rl.trainers.make_questions.rules import RuleProposer

__all__ = [
    "REASONS",
    "Draft",
    "Facts",
    "GivenQuestions",
    "Hop",
    "IndexChecks",
    "Limits",
    "MakingPlan",
    "RuleProposer",
    "Texts",
    "form_of",
    "make_questions",
]
