"""The evaluation card: what was measured, with intervals, as ``card.md`` and ``card.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from research_rl.envs.system import write_whole
from research_rl.trainers.evaluate.measures import MEASURES, Agreement, Cell, Interval, beside
from research_rl.trainers.evaluate.report.summary import CellSummary, Comparison, Summary

COUNTED = ("searches", "distinct_queries", "sampled_tokens", "result_tokens", "seconds")
_FOLDED = "EM is as published. Folded EM reads 1,500 as 1500 and is ours: set no paper beside it."
CEILING_HEAD = "EM's ceiling, %"
_HEADS = {
    "em": "EM",
    "f1": "F1",
    "cover_em": "cover-EM",
    "folded_em": "folded EM (ours)",
    "support_recall": "support recall",
    "answer_in_results": "answer in results",
    "format": "format right",
    "searches": "searches",
    "distinct_queries": "distinct queries",
    "sampled_tokens": "tokens written",
    "result_tokens": "tokens read",
    "seconds": "seconds",
}


class Naming:
    """Names of cells, in which the model is left out where there is only one.

    Args:
        cells: of the grid.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._several = len({cell.model for cell in cells}) > 1

    def system(self, method: str, model: str) -> str:
        """Return ``ReSearch`` or ``ReSearch (7b)``."""
        return f"{method} ({model})" if self._several else method


def card_markdown(
    summary: Summary,
    title: str = "Evaluation",
    note: str = "",
    paper: str | None = None,
    classes: Mapping[str, str] | None = None,
    made: datetime | None = None,
    ceilings: Mapping[str, float | None] | None = None,
) -> str:
    """Return the card as Markdown.

    Args:
        summary: of the rows.
        title: heading.
        note: what a reader must know first.
        paper: a ReSearch model of the paper to compare with.
        classes: method -> class name, by which the paper's baselines are found.
        made: the time to print, if any.
        ceilings: data set -> share of its questions that can be answered from its passages, as
            ``research data audit`` has found it.
    """
    naming = Naming(summary.cells)
    parts = [f"# {title}", *([note] if note else []), _head(summary, made)]
    answers = _table(_answers(summary, naming, ceilings or {}))
    parts += ["## Answers", answers, *[_FOLDED] * _has_folded(summary)]
    if paper is not None:
        parts += [f"## Beside {paper} of the paper", _paper(summary, naming, paper, classes or {})]
    if summary.comparisons:
        parts += ["## Is the difference real?", _comparisons(summary, naming)]
    if any(cell.by_hops for cell in summary.cells.values()):
        parts += ["## EM by hops", _table(_by_hops(summary, naming))]
    parts += ["## What was found and what it cost", _table(_costs(summary, naming))]
    parts += ["## How answers ended", _table(_ends(summary, naming))]
    if summary.knowledge:
        parts += ["## Known without searching", _knowledge(summary, naming)]
    parts += _corrections(summary, naming) + _judges(summary, naming)
    return "\n\n".join(parts) + "\n"


def _head(summary: Summary, made: datetime | None) -> str:
    answered = sum(cell.answered for cell in summary.cells.values())
    asked = sum(cell.asked for cell in summary.cells.values())
    errors = sum(cell.errors for cell in summary.cells.values())
    said = [f"{answered:,} of {asked:,} answers are in"]
    if errors:
        said.append(f"{errors:,} are errors of a model's server, counted nowhere below")
    if asked - answered - errors:
        said.append(f"{asked - answered - errors:,} are still to be asked")
    when = "" if made is None else f" Made {made:%Y-%m-%d %H:%M} UTC"
    when += f" with research-rl {version('research-rl')}." if when else ""
    return (
        f"{'; '.join(said)}.{when} Figures in brackets are 95 % bootstrap intervals over questions;"
        " n is the number of questions behind a line. An interval without width says that all"
        " values were equal, not that the figure is certain."
    )


def _answers(
    summary: Summary, naming: Naming, ceilings: Mapping[str, float | None]
) -> Iterator[list[str]]:
    shares = ceiling_texts(ceilings)
    judges = _judge_names(summary)
    names = ("em", "f1", "cover_em") + ("folded_em",) * _has_folded(summary)
    heads = [f"{_HEADS[name]}, %" for name in names] + [f"{j} says right, %" for j in judges]
    heads[1:1] = [CEILING_HEAD] * bool(shares)
    yield ["data set", "method", "n", *heads]
    for cell, found in summary.cells.items():
        ceiling = [shares.get(cell.dataset, "–")] * bool(shares)
        said = [found.judges[judge] for judge in judges]
        yield [
            cell.dataset,
            naming.system(cell.method, cell.model),
            f"{found.answered:,}",
            percent(found.measures.get("em")),
            *ceiling,
            *(percent(found.measures.get(name)) for name in names[1:]),
            *("–" if s.accuracy is None else f"{100 * s.accuracy:.1f} (n {s.n})" for s in said),
        ]


def _has_folded(summary: Summary) -> bool:
    return any("folded_em" in cell.measures for cell in summary.cells.values())


def ceiling_texts(ceilings: Mapping[str, float | None] | None) -> dict[str, str]:
    """Return the known ceilings in percent, "83.3", by data set."""
    known = (ceilings or {}).items()
    return {name: f"{100 * share:.1f}" for name, share in known if share is not None}


def _paper(summary: Summary, naming: Naming, system: str, classes: Mapping[str, str]) -> str:
    lines = [["data set", "method", "EM, %", "paper's EM, %", "difference", "paper's judge, %"]]
    for cell, found in summary.cells.items():
        theirs = beside(system, classes.get(cell.method, cell.method), cell.dataset)
        ours = found.measures.get("em")
        if theirs is None or ours is None or ours.mean is None:
            continue
        gap = 100 * ours.mean - theirs.em
        name = naming.system(cell.method, cell.model)
        lines.append(
            [
                cell.dataset,
                name,
                percent(ours),
                f"{theirs.em:.2f}",
                f"{gap:+.1f}",
                f"{theirs.judge:.2f}",
            ]
        )
    if len(lines) == 1:
        return (
            "The paper has none of these data sets: HotpotQA, 2WikiMultihopQA, MuSiQue, Bamboogle."
        )
    told = (
        "The paper (arXiv 2503.19470v3, Table 2) asked all of HotpotQA dev (7,405), 2Wiki dev "
        "(12,576), MuSiQue dev (2,417) and Bamboogle (125) over Wikipedia of December 2018; other "
        "questions, passages or models give other figures."
    )
    return f"{_table(lines)}\n\n{told}"


def _comparisons(summary: Summary, naming: Naming) -> str:
    lines = [["data set", "against", "measure", "ahead by, points", "p", "p corrected", "n"]]
    for one in summary.comparisons:
        lines.append(
            [
                one.dataset,
                f"{naming.system(*one.reference)} – {naming.system(*one.other)}",
                _HEADS[one.measure],
                gap_text(one),
                p_text(one.paired.p_value),
                p_text(one.corrected_p),
                f"{one.paired.n:,}",
            ]
        )
    told = (
        "Paired over the questions that both answered: bootstrap interval of the difference, "
        "two-sided permutation test; corrected for all lines of this table (Holm)."
    )
    return f"{_table(lines)}\n\n{told}"


def gap_text(one: Comparison) -> str:
    """Return ``+12.0 [+8.1, +15.9]``, the points by which the reference is ahead."""
    gap = one.paired
    if gap.difference is None or gap.low is None or gap.high is None:
        return "–"
    return f"{100 * gap.difference:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def _by_hops(summary: Summary, naming: Naming) -> Iterator[list[str]]:
    kinds = sorted({hops for cell in summary.cells.values() for hops in cell.by_hops})
    yield ["data set", "method", *(f"{k} hop{'s' * (k > 1)}, %" for k in kinds)]
    for cell, found in summary.cells.items():
        if found.by_hops:
            values = (found.by_hops.get(kind) for kind in kinds)
            cells = ("–" if v is None else f"{percent(v)} (n {v.n})" for v in values)
            yield [cell.dataset, naming.system(cell.method, cell.model), *cells]


def _costs(summary: Summary, naming: Naming) -> Iterator[list[str]]:
    found_heads = ("support_recall", "answer_in_results")
    heads = [f"{_HEADS[name]}, %" for name in found_heads] + [_HEADS[name] for name in COUNTED]
    yield ["data set", "method", *heads]
    for cell, found in summary.cells.items():
        yield [
            cell.dataset,
            naming.system(cell.method, cell.model),
            *(percent(found.measures.get(name)) for name in found_heads),
            *(interval_text(found.measures.get(name)) for name in COUNTED),
        ]


def _ends(summary: Summary, naming: Naming) -> Iterator[list[str]]:
    yield [
        "data set",
        "method",
        "n",
        "errors",
        "finish reasons",
        "format right, %",
        "format errors",
    ]
    for cell, found in summary.cells.items():
        yield [
            cell.dataset,
            naming.system(cell.method, cell.model),
            f"{found.answered:,}",
            f"{found.errors:,}",
            _counts(found.finish),
            percent(found.measures.get("format")),
            _counts(found.format_errors),
        ]


def _knowledge(summary: Summary, naming: Naming) -> str:
    lines = [["data set", "closed-book EM, %", "method", "right answers", "of them known before"]]
    for one in summary.knowledge:
        told = one.answered_before
        of = f" of {told:,} answered" if told < one.right else ""  # the others are errors
        share = f" ({100 * one.known_before / told:.1f} %{of})" if told else ""
        system = naming.system(*one.system)
        known = f"{one.known_before:,}{share}"
        lines.append([one.dataset, percent(one.known), system, f"{one.right:,}", known])
    return _table(lines)


def _corrections(summary: Summary, naming: Naming) -> list[str]:
    lines = [
        [
            "data set",
            "method",
            "questions",
            "with a miss",
            "misses",
            "searched anew, %",
            "of those found at once, %",
            "found in the end, %",
        ]
    ]
    for cell, found in summary.cells.items():
        counts = found.self_correction
        if counts.misses:
            rates = (counts.requery_rate, counts.recovery_rate, counts.eventual_recovery_rate)
            lines.append(
                [
                    cell.dataset,
                    naming.system(cell.method, cell.model),
                    f"{counts.questions:,}",
                    f"{counts.questions_with_miss:,}",
                    f"{counts.misses:,}",
                    *("–" if rate is None else f"{100 * rate:.1f}" for rate in rates),
                ]
            )
    if len(lines) == 1:
        return []
    told = (
        "A miss is a search that brought nothing needed while something was still missing; it is "
        "searched anew if a new query follows."
    )
    return ["## Searching again after a miss", f"{_table(lines)}\n\n{told}"]


def _judges(summary: Summary, naming: Naming) -> list[str]:
    judges = _judge_names(summary)
    if not judges:
        return []
    lines = [["data set", "method", "judge", "right, %", "n", "failures"]]
    for cell, found in summary.cells.items():
        for judge, score in found.judges.items():
            share = "–" if score.accuracy is None else f"{100 * score.accuracy:.1f}"
            name = naming.system(cell.method, cell.model)
            lines.append([cell.dataset, name, judge, share, f"{score.n:,}", f"{score.failures:,}"])
    pairs = [*summary.against_judges, *summary.agreements]
    agreed = [["pair", "agree, %", "kappa", "n", "left out"], *map(_agreement, pairs)]
    told = "A judge's failure is neither right nor wrong: it is in no rate."
    return ["## Judges", f"{_table(lines)}\n\n{told}", _table(agreed)]


def _agreement(one: Agreement) -> list[str]:
    percent_ = "–" if one.percent is None else f"{one.percent:.1f}"
    kappa = "–" if one.kappa is None else f"{one.kappa:.2f}"
    return [" and ".join(one.judges), percent_, kappa, f"{one.n:,}", f"{one.left_out:,}"]


def _judge_names(summary: Summary) -> list[str]:
    return list(dict.fromkeys(j for cell in summary.cells.values() for j in cell.judges))


def percent(interval: Interval | None) -> str:
    """Return ``40.6 [38.2, 43.0]`` for a share; a dash where there is none."""
    if interval is None or interval.mean is None:
        return "–"
    assert interval.low is not None
    assert interval.high is not None
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def interval_text(interval: Interval | None) -> str:
    """Return ``1.83 [1.79, 1.87]``, with about three digits that count."""
    if interval is None or interval.mean is None:
        return "–"
    assert interval.low is not None
    assert interval.high is not None
    digits = 0 if interval.mean >= 100 else 1 if interval.mean >= 10 else 2
    digits = 3 if 0 < interval.mean < 0.1 else digits
    low, high = f"{interval.low:.{digits}f}", f"{interval.high:.{digits}f}"
    return f"{interval.mean:.{digits}f} [{low}, {high}]"


def p_text(value: float | None) -> str:
    """Return a p-value with three decimals, ``< 0.001`` below that."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "–"


def _table(lines: Iterable[Sequence[str]]) -> str:
    head, *rest = ([cell.replace("|", "\\|").replace("\n", " ") for cell in x] for x in lines)
    rows = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest)]
    return "\n".join(rows)


def card_csv(summary: Summary) -> str:
    """Return a line for each cell and measure: dataset, model, method, measure, n, mean, low, high.

    Rates are 0 to 1. Counts (``finish:answer``, ``format_error:...``, ``errors``) have their
    number as mean and no interval; a judge is ``judge:NAME``, its failures ``judge_failures:NAME``.
    """
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["dataset", "model", "method", "measure", "n", "mean", "low", "high"])
    for cell, found in summary.cells.items():
        for measure, n, values in _measured(found):
            shown = ["" if value is None else f"{value:.6g}" for value in values]
            lines.writerow([*cell, measure, n, *shown])
    return out.getvalue()


def _measured(found: CellSummary) -> Iterator[tuple[str, int, tuple[float | None, ...]]]:
    for name in MEASURES:
        if name in found.measures:
            known = found.measures[name]
            yield name, known.n, (known.mean, known.low, known.high)
    for hops, known in found.by_hops.items():
        yield f"em:{hops} hops", known.n, (known.mean, known.low, known.high)
    for judge, score in found.judges.items():
        yield f"judge:{judge}", score.n, (score.accuracy, None, None)
        yield f"judge_failures:{judge}", found.answered, (float(score.failures), None, None)
    counts = {f"finish:{name}": count for name, count in found.finish.items()}
    counts |= {f"format_error:{name}": count for name, count in found.format_errors.items()}
    for name, count in {**counts, "errors": found.errors}.items():
        yield name, found.answered, (float(count), None, None)


def write_card(folder: Path, markdown: str, table: str) -> None:
    """Write ``card.md`` and ``card.csv``, each whole or not at all."""
    write_whole(folder / "card.md", markdown)
    write_whole(folder / "card.csv", table)


def now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)
