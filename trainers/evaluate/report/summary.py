"""The summary of an evaluation's rows: means with intervals, tests, counts, scores of judges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from research_rl.trainers.evaluate.judges import JudgeScore, Verdict, judge_score
from research_rl.trainers.evaluate.measures import (
    MEASURES,
    Agreement,
    Cell,
    Interval,
    Paired,
    Row,
    SelfCorrection,
    agreement_of,
    bootstrap_interval,
    holm,
    paired_test,
    pairwise_agreement,
)

TESTED = ("em", "f1")
"""The measures that methods are compared by."""


class System(NamedTuple):
    """A method with the model that it runs on."""

    method: str
    model: str


@dataclass(frozen=True)
class CellSummary:
    """One system on one data set.

    Args:
        cell: which.
        asked: questions of the data set that were to be asked.
        answered: of them, those that have a row without an error.
        errors: of them, those whose row is an error; the others have no row yet.
        measures: each measure that any row has, with its interval and its own n.
        finish: finish reason -> number of rows.
        format_errors: class of format error -> number of rows.
        judges: judge -> its score.
        self_correction: counts over all rows.
        by_hops: number of hops -> EM of those questions, where the questions say their hops.
    """

    cell: Cell
    asked: int
    answered: int
    errors: int
    measures: Mapping[str, Interval]
    finish: Mapping[str, int]
    format_errors: Mapping[str, int]
    judges: Mapping[str, JudgeScore]
    self_correction: SelfCorrection
    by_hops: Mapping[int, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """The reference against another system on one data set; p is corrected for all of the card."""

    dataset: str
    measure: str
    reference: System
    other: System
    paired: Paired
    corrected_p: float | None


@dataclass(frozen=True)
class Knowledge:
    """How much of what the reference gets right was known without searching.

    ``known`` is the closed-book EM. ``system`` gave ``right`` right answers; ``answered_before`` of
    them were answered closed-book too, and ``known_before`` of those rightly.
    """

    dataset: str
    system: System
    known: Interval
    right: int
    answered_before: int
    known_before: int


@dataclass(frozen=True)
class Summary:
    """Everything that the card says."""

    cells: Mapping[Cell, CellSummary]
    comparisons: Sequence[Comparison]
    knowledge: Sequence[Knowledge]
    agreements: Sequence[Agreement]
    """Of every two judges, over all rows that both judged."""
    against_judges: Sequence[Agreement]
    """Of EM with each judge."""


def summarise(
    rows: Sequence[Row],
    asked: Mapping[Cell, int],
    judges: Sequence[str] = (),
    reference: str = "ReSearch",
    closed_book: str | None = None,
    resamples: int = 10_000,
) -> Summary:
    """Return the summary of the rows.

    Args:
        rows: at most one for each question of a cell.
        asked: the cells of the grid with the number of their questions.
        judges: names of the judges.
        reference: the method that others are tested against, on the same model if it runs on that,
            else on the first model that it runs on.
        closed_book: the method that answers without searching.
        resamples: of bootstrap and permutation tests.
    """
    by_cell: dict[Cell, list[Row]] = {cell: [] for cell in asked}
    for row in rows:
        by_cell[Cell(row["dataset"], row["model"], row["method"])].append(row)
    return Summary(
        {c: _cell(c, asked[c], found, judges, resamples) for c, found in by_cell.items()},
        _comparisons(by_cell, reference, resamples),
        _knowledge(by_cell, reference, closed_book, resamples),
        _between(rows, judges),
        [_em_against(rows, judge) for judge in judges],
    )


def _cell(
    cell: Cell, asked: int, rows: Sequence[Row], judges: Sequence[str], resamples: int
) -> CellSummary:
    good = [row for row in rows if row["error"] is None]
    measures = {
        name: bootstrap_interval([row.get(name) for row in good], resamples=resamples)
        for name in MEASURES
        if name != "failed"
    }
    hops = sorted({row["hops"] for row in good if row.get("hops") is not None})
    by_hops = {
        kind: bootstrap_interval([r["em"] for r in good if r["hops"] == kind], resamples=resamples)
        for kind in hops
    }
    wrong = (row["format_error"] for row in good if row["format_error"] is not None)
    return CellSummary(
        cell,
        asked,
        len(good),
        len(rows) - len(good),
        {name: interval for name, interval in measures.items() if interval.n},
        _counted(row["finish_reason"] or "unknown" for row in rows),
        _counted(error.partition(":")[0].strip() for error in wrong),
        {judge: judge_score(map(_verdict, good, [judge] * len(good))) for judge in judges},
        sum((SelfCorrection(**row["self_correction"]) for row in good), SelfCorrection()),
        by_hops if len(by_hops) > 1 else {},
    )


def _verdict(row: Row, judge: str) -> Verdict:
    said = row["judge"].get(judge, {"verdict": None, "error": "not asked"})
    return Verdict(said["verdict"], error=said["error"])


def _counted(names: Iterable[str]) -> dict[str, int]:
    counted = Counter(names)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def _values(rows: Iterable[Row], measure: str) -> dict[str, float | None]:
    return {row["id"]: row[measure] for row in rows if row["error"] is None}


def reference_for(cell: Cell, cells: Iterable[Cell], reference: str) -> Cell | None:
    """Return the cell that this one is compared with: on its own model if there is one."""
    near = [c for c in cells if c.dataset == cell.dataset and c.method == reference]
    return next((c for c in near if c.model == cell.model), near[0] if near else None)


def _comparisons(
    by_cell: Mapping[Cell, Sequence[Row]], reference: str, resamples: int
) -> list[Comparison]:
    found: list[tuple[Cell, Cell, str, Paired]] = []
    for cell, rows in by_cell.items():
        best = reference_for(cell, by_cell, reference)
        if best is None or best == cell or cell.method == reference:
            continue
        for measure in TESTED:
            ours, theirs = _values(by_cell[best], measure), _values(rows, measure)
            found.append((cell, best, measure, paired_test(ours, theirs, resamples=resamples)))
    tested = [paired.p_value for *_, paired in found if paired.p_value is not None]
    corrected = iter(holm(tested))
    return [
        Comparison(
            cell.dataset,
            measure,
            System(best.method, best.model),
            System(cell.method, cell.model),
            paired,
            None if paired.p_value is None else next(corrected),
        )
        for cell, best, measure, paired in found
    ]


def _knowledge(
    by_cell: Mapping[Cell, Sequence[Row]], reference: str, closed_book: str | None, resamples: int
) -> list[Knowledge]:
    found = []
    for cell, rows in by_cell.items():
        best = reference_for(cell, by_cell, reference)
        if cell.method != closed_book or best is None:
            continue
        known = _values(rows, "em")
        right = [id for id, em in _values(by_cell[best], "em").items() if em == 1.0]
        found.append(
            Knowledge(
                cell.dataset,
                System(best.method, best.model),
                bootstrap_interval(known.values(), resamples=resamples),
                len(right),
                sum(known.get(id) is not None for id in right),
                sum(known.get(id) == 1.0 for id in right),
            )
        )
    return found


def _between(rows: Sequence[Row], judges: Sequence[str]) -> list[Agreement]:
    good = [row for row in rows if row["error"] is None]
    verdicts = {judge: [_verdict(row, judge).correct for row in good] for judge in judges}
    return pairwise_agreement(verdicts) if len(judges) > 1 else []


def _em_against(rows: Sequence[Row], judge: str) -> Agreement:
    good = [row for row in rows if row["error"] is None and row["em"] is not None]
    said = [_verdict(row, judge).correct for row in good]
    return agreement_of({"EM": [row["em"] == 1.0 for row in good], judge: said})
