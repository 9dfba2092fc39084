"""Every answer of an evaluation on one static page: summary, filters, two methods side by side.

The page loads nothing and works from disk. It holds the answers as compressed JSON, so that
hundreds of questions stay a small file.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research_rl.envs.protocols import PROTOCOLS, RESEARCH, Protocol
from research_rl.envs.system import write_whole
from research_rl.trainers.callbacks import Picture, picture_of
from research_rl.trainers.evaluate.measures import Cell, Row
from research_rl.trainers.evaluate.report.card import (
    CEILING_HEAD,
    Naming,
    ceiling_texts,
    interval_text,
    p_text,
    percent,
)
from research_rl.trainers.evaluate.report.charts import bars_figure, searches_figure
from research_rl.trainers.evaluate.report.summary import Comparison, Summary, System
from research_rl.trainers.viewer import html_page, packed, turn_parts

_HEADS = (
    *("method", "EM, %", "F1, %", "cover-EM, %", "searches"),
    *("answer in results, %", "format right, %", "n", "errors"),
)
_ALT = {"figure1": "Bars: accuracy of each method", "searches": "Accuracy against searches"}


def verdict_of(row: Row) -> str:
    """Sort a row: ``error``, ``format`` if its form is wrong, else ``right`` or ``wrong`` by EM."""
    if row["error"] is not None:
        return "error"
    if row["format_error"] is not None:
        return "format"
    return "right" if row["em"] == 1.0 else "wrong"


def write_page(
    path: Path,
    rows: Sequence[Row],
    summary: Summary,
    title: str = "Evaluation",
    note: str = "",
    figures: Sequence[Path] | None = None,
    reference: str = "ReSearch",
    num_questions: int = 500,
    protocols: Mapping[str, Protocol] = PROTOCOLS,
    ceilings: Mapping[str, float | None] | None = None,
) -> Path:
    """Write the page and return its path.

    Args:
        path: the HTML file.
        rows: of the evaluation, in the order in which questions are listed.
        summary: of them.
        title: heading.
        note: what a reader must know first.
        figures: PNG files that are put into the page; None draws the two of the summary, so that
            they fit dark pages and phones.
        reference: the method that is shown first.
        num_questions: of each data set, the first ones; the page says how many are left out.
        protocols: by the names that rows have; steps in another one are shown as plain text.
        ceilings: as in ``card_markdown``.
    """
    shares = ceiling_texts(ceilings)
    heads = list(_HEADS)
    heads[2:2] = [CEILING_HEAD] * bool(shares)
    page = html_page(
        "report.html",
        "research_rl.trainers.evaluate.report",
        title=title,
        note=note,
        heads=heads,
        scores=list(_scores(summary, shares)),
        results=list(_results(summary, reference)),
        reference=reference,
        figures=[(_base64(f.read_bytes()), _ALT.get(f.stem, f.stem)) for f in figures or ()],
        pictures=_pictures(summary, reference) if figures is None and summary.cells else [],
        data=packed(page_data(rows, summary.cells, reference, num_questions, protocols)),
    )
    return write_whole(path, page)


def page_data(
    rows: Sequence[Row],
    cells: Iterable[Cell],
    reference: str,
    num_questions: int,
    protocols: Mapping[str, Protocol] = PROTOCOLS,
) -> dict[str, Any]:
    """Return the data of the page's script: for each question a row for each system."""
    naming = Naming(cells)
    systems = list(dict.fromkeys((cell.method, cell.model) for cell in cells))
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    numbers = {system: place for place, system in enumerate(systems)}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    listed = dict.fromkeys(datasets, 0)
    left_out: set[tuple[str, str]] = set()
    for row in rows:
        key = row["dataset"], row["id"]
        if key not in found:
            if listed[row["dataset"]] >= num_questions:
                left_out.add(key)
                continue
            listed[row["dataset"]] += 1
            found[key] = _question(row, datasets.index(row["dataset"]))
        found[key]["r"][numbers[row["method"], row["model"]]] = _answer(row, protocols)
    first = (place for place, (method, _) in enumerate(systems) if method == reference)
    return {
        "datasets": datasets,
        "systems": [naming.system(*system) for system in systems],
        "reference": next(first, 0),
        "questions": list(found.values()),
        "note": f"{len(left_out):,} more are in rows.jsonl" if left_out else "",
    }


def _question(row: Row, dataset: int) -> dict[str, Any]:
    return {
        "d": dataset,
        "id": row["id"],
        "q": row["question"],
        "a": row["answers"],
        "h": row["hops"],
        "g": row["gold"],
        "r": {},
    }


def _answer(row: Row, protocols: Mapping[str, Protocol]) -> dict[str, Any]:
    """One row in the short names that the script reads."""
    protocol = protocols.get(row.get("protocol", RESEARCH.name))
    names = ("em", "f1", "searches", "sampled_tokens", "result_tokens")
    measures = [row[name] for name in names]
    found = zip(row["queries"], row["passages"], strict=False)
    return {
        "v": verdict_of(row),
        "p": row["prediction"],
        "f": row["finish_reason"],
        "e": row["format_error"],
        "x": row["error"],
        "m": [int(m) if m is not None and m == int(m) else m for m in measures],
        "j": {judge: said["verdict"] for judge, said in row["judge"].items()},
        "s": [part for step in row["steps"] for part in _parts(step, protocol)],
        "t": [[query, [[p["id"], p["title"]] for p in each]] for query, each in found],
    }


def _parts(step: Mapping[str, str], protocol: Protocol | None) -> list[list[str]]:
    """A step, cut as its protocol says; whole where nobody knows the protocol any more."""
    text = step["text"]
    if step["role"] != "model":
        return [["result", text.strip() if protocol is None else protocol.content(text)]]
    if protocol is None:
        return [["text", text]]
    return [[part.kind, part.text] for part in turn_parts(text, protocol)]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _pictures(summary: Summary, reference: str) -> list[Picture]:
    drawn = {"figure1": bars_figure, "searches": searches_figure}
    return [
        picture_of(
            _ALT[name],
            draw(summary, reference=reference),
            draw(summary, reference=reference, most=1),
        )
        for name, draw in drawn.items()
    ]


def _results(summary: Summary, reference: str) -> Iterator[str]:
    """A sentence for each data set: the EM of the reference, and its distance to the next best."""
    naming = Naming(summary.cells)
    for cell, found in summary.cells.items():
        em = found.measures.get("em")
        if cell.method != reference or em is None or em.mean is None:
            continue
        name = naming.system(cell.method, cell.model)
        said = f"{cell.dataset}: {name} answers {100 * em.mean:.1f} % of the questions right (EM)"
        system = System(cell.method, cell.model)
        tests = (one for one in summary.comparisons if one.dataset == cell.dataset)
        against = [one for one in tests if one.measure == "em" and one.reference == system]
        known = [one for one in against if one.paired.difference is not None]
        nearest = min(known, key=lambda one: one.paired.difference or 0.0, default=None)
        if nearest is not None:
            said += f", {_ahead(nearest)} {naming.system(*nearest.other)}{_certainty(nearest)}"
        yield f"{said}."


def _ahead(one: Comparison) -> str:
    """``28.0 points more than`` the best of the other methods, which is named after it."""
    points = round(100 * (one.paired.difference or 0.0), 1)
    if not points:
        return "as many as the best other method,"
    order = "more" if points > 0 else "fewer"
    return f"{abs(points):.1f} points {order} than the best other method,"


def _certainty(one: Comparison) -> str:
    """The interval of a difference and its p; nothing where all questions were answered alike."""
    gap = one.paired
    if gap.low is None or gap.high is None or not (gap.low or gap.high):
        return ""
    low, high = (f"{100 * end:+.1f}" for end in (gap.low, gap.high))
    return f" (95 % interval {low} to {high}, p {p_text(one.corrected_p)})"


def _scores(summary: Summary, ceilings: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The lines of the table, one for each cell: its names, and its numbers with intervals."""
    naming = Naming(summary.cells)
    for cell, found in summary.cells.items():
        get = found.measures.get
        yield {
            **cell._asdict(),
            "name": naming.system(cell.method, cell.model),
            "numbers": [
                percent(get("em")),
                *([ceilings.get(cell.dataset, "–")] * bool(ceilings)),
                *(percent(get(name)) for name in ("f1", "cover_em")),
                interval_text(get("searches")),
                *(percent(get(name)) for name in ("answer_in_results", "format")),
                f"{found.answered:,}",
                f"{found.errors:,}",
            ],
        }
