"""The report of an evaluation: card, charts, page.

Read first: summary.py
May import: envs, trainers.callbacks, trainers.evaluate.judges, trainers.evaluate.measures,
    trainers.viewer
"""

from __future__ import annotations

from research_rl.trainers.evaluate.report.card import card_csv, card_markdown, now, write_card
from research_rl.trainers.evaluate.report.charts import accuracy_against_searches, figure1
from research_rl.trainers.evaluate.report.page import write_page
from research_rl.trainers.evaluate.report.summary import summarise

__all__ = [
    "accuracy_against_searches",
    "card_csv",
    "card_markdown",
    "figure1",
    "now",
    "summarise",
    "write_card",
    "write_page",
]
