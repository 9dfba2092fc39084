"""The report of an evaluation, made from its rows alone: verdicts, card, figures and page."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from research_rl.trainers.evaluate.judges import judge_rows
from research_rl.trainers.evaluate.report import (
    accuracy_against_searches,
    card_csv,
    card_markdown,
    figure1,
    now,
    summarise,
    write_card,
    write_page,
)
from research_rl.trainers.evaluate.run import Evaluation


class Report(NamedTuple):
    """What was written."""

    markdown: str
    files: list[Path]


def write_report(evaluation: Evaluation) -> Report:
    """Let the judges judge what is new, then write rows, card, figures and page."""
    config, out = evaluation.config, evaluation.out
    if config.judges:
        changed = judge_rows(evaluation.wanted(), config.judges, out)
        evaluation.rows.append(changed)
    rows = evaluation.finish()
    asked = {c: len(evaluation.sources[c.dataset].questions) for c in evaluation.cells}
    summary = summarise(
        rows, asked, list(config.judges), config.reference, config.closed_book, config.resamples
    )
    classes = {name: method.agent.__name__ for name, method in evaluation.methods.items()}
    ceilings = {name: source.ceiling() for name, source in evaluation.sources.items()}
    markdown = card_markdown(
        summary, config.title, config.note, config.beside, classes, now(), ceilings
    )
    write_card(out, markdown, card_csv(summary))
    figures = [
        figure1(summary, out / "figure1.png", "em", config.reference),
        accuracy_against_searches(summary, out / "searches.png", "em", config.reference),
    ]
    page = write_page(
        out / "report.html",
        rows,
        summary,
        title=config.title,
        note=config.note,
        reference=config.reference,
        num_questions=config.page_questions,
        protocols=evaluation.protocols,
        ceilings=ceilings,
    )
    return Report(markdown, [out / "card.md", out / "card.csv", *figures, page, out / "rows.jsonl"])
