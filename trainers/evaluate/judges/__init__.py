"""Judges: served models that say whether an answer is right, and a cache of their verdicts.

Read first: judge.py
May import: agents, envs, trainers.evaluate.measures
"""

from __future__ import annotations

from research_rl.trainers.evaluate.judges.judge import JudgeScore, Verdict, judge_score
from research_rl.trainers.evaluate.judges.rows import judge_rows
from research_rl.trainers.evaluate.judges.term import JudgeTerm

__all__ = [
    "JudgeScore",
    "JudgeTerm",
    "Verdict",
    "judge_rows",
    "judge_score",
]
