"""Questions made of an index: proposed with or without a model, checked without one.

Read first: checks.py, then make.py
May import: agents, envs, trainers.audit, trainers.settings
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research_rl.envs.system import lazy

if TYPE_CHECKING:
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

# `research questions --help` does not wait for torch
__getattr__ = lazy(
    __name__,
    {
        "checks": ["REASONS", "IndexChecks", "Limits", "form_of"],
        "drafts": ["Draft", "Hop", "Texts"],
        "facts": ["Facts"],
        "given": ["GivenQuestions"],
        "make": ["MakingPlan", "make_questions"],
        "rules": ["RuleProposer"],
    },
)
