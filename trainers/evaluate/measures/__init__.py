"""Measures of an evaluation: scores of answers, intervals, paired tests, published figures.

Read first: answers.py
May import: agents, envs
"""

from __future__ import annotations

from research_rl.trainers.evaluate.measures.agreement import (
    Agreement,
    agreement_of,
    pairwise_agreement,
)
from research_rl.trainers.evaluate.measures.answers import (
    MEASURES,
    measure_prediction,
)
from research_rl.trainers.evaluate.measures.published import beside, check_system
from research_rl.trainers.evaluate.measures.rows import Cell, Key, Row, RowFile, row_of
from research_rl.trainers.evaluate.measures.self_correction import SelfCorrection
from research_rl.trainers.evaluate.measures.statistics import (
    FEWEST_RESAMPLES,
    Interval,
    Paired,
    bootstrap_interval,
    holm,
    paired_test,
)

__all__ = [
    "FEWEST_RESAMPLES",
    "MEASURES",
    "Agreement",
    "Cell",
    "Interval",
    "Key",
    "Paired",
    "Row",
    "RowFile",
    "SelfCorrection",
    "agreement_of",
    "beside",
    "bootstrap_interval",
    "check_system",
    "holm",
    "measure_prediction",
    "paired_test",
    "pairwise_agreement",
    "row_of",
]
