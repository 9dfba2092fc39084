"""Reward terms: what an episode can be paid for, one class each, and their weighted sum.

Read first: base.py, then kit.py
May import: envs.protocols, envs.rewards.answers, envs.rewards.fair, envs.rewards.presets,
    envs.system, envs.types
"""

from __future__ import annotations

from research_rl.envs.rewards.terms.abstain import ABSTENTIONS, AbstainTerm, abstained, says_none
from research_rl.envs.rewards.terms.answer import ActionTerm, AnswerTerm, FormTerm
from research_rl.envs.rewards.terms.base import Passages, RewardTerm
from research_rl.envs.rewards.terms.evidence import CitationTerm, EvidenceTerm, SearchesTerm
from research_rl.envs.rewards.terms.kit import NAMED_TERMS, RewardTerms, class_paths_in

__all__ = [
    "ABSTENTIONS",
    "NAMED_TERMS",
    "AbstainTerm",
    "ActionTerm",
    "AnswerTerm",
    "CitationTerm",
    "EvidenceTerm",
    "FormTerm",
    "Passages",
    "RewardTerm",
    "RewardTerms",
    "SearchesTerm",
    "abstained",
    "class_paths_in",
    "says_none",
]
