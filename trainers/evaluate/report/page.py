"""Every answer of an evaluation on one static page: summary, filters, two methods side by side.

The page loads nothing and works from disk. The answers are deflated JSON in it; a model's text
reaches the page as text only, never as markup.
"""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from research_rl.envs.system import write_whole
from research_rl.trainers.evaluate.measures import Cell, Row
from research_rl.trainers.evaluate.report.card import Naming, interval_text, percent
from research_rl.trainers.evaluate.report.summary import Summary

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
    figures: Sequence[Path] = (),
    reference: str = "ReSearch",
    num_questions: int = 500,
) -> Path:
    """Write the page and return its path.

    Args:
        path: the HTML file.
        rows: of the evaluation, in the order in which questions are listed.
        summary: of them.
        title: heading.
        note: what a reader must know first.
        figures: PNG files that are put into the page.
        reference: the method that is shown first.
        num_questions: of each data set, the first ones; how many are left out is said.
    """
    data = page_data(rows, summary.cells, reference, num_questions)
    assets = files("research_rl.trainers.evaluate.report")
    slots = {
        "title": html.escape(_scalar(title)),
        "viewer": files("research_rl.trainers.viewer").joinpath("page.css").read_text("utf-8"),
        "style": assets.joinpath("page.css").read_text("utf-8"),
        "script": assets.joinpath("page.js").read_text("utf-8"),
        "overview": "\n".join(_overview(summary, _scalar(note), figures, reference)),
        "data": _packed(data),
    }
    page = assets.joinpath("page.html").read_text("utf-8")
    return write_whole(path, re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match[1]], page))


def page_data(
    rows: Sequence[Row], cells: Iterable[Cell], reference: str, num_questions: int
) -> dict[str, Any]:
    """Return what the page's script reads: one entry a question, with a row for each system."""
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
        found[key]["r"][numbers[row["method"], row["model"]]] = _answer(row)
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


def _answer(row: Row) -> dict[str, Any]:
    """One row in the short names that the script reads."""
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
        "s": [["m" if s["role"] == "model" else "e", s["text"]] for s in row["steps"]],
        "t": [[query, [[p["id"], p["title"]] for p in each]] for query, each in found],
    }


def _packed(value: Any) -> str:
    """Deflated JSON in base64: letters, digits, plus, slash and equals signs only."""
    text = json.dumps(value, separators=(",", ":"))  # ASCII: a lone surrogate stays an escape
    return base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")


def _overview(
    summary: Summary, note: str, figures: Sequence[Path], reference: str
) -> Iterator[str]:
    if note:
        yield f"<p>{html.escape(note)}</p>"
    yield '<div class="wide"><table id="scores">'
    heads = (
        "data set",
        "method",
        "n",
        "errors",
        "EM, %",
        "F1, %",
        "cover-EM, %",
        "searches",
        "answer in results, %",
        "format right, %",
    )
    yield "<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    naming, before = Naming(summary.cells), None
    for cell, found in summary.cells.items():
        get = found.measures.get
        rates = [percent(get(name)) for name in ("em", "f1", "cover_em")]
        others = [
            interval_text(get("searches")),
            *(percent(get(n)) for n in ("answer_in_results", "format")),
        ]
        name = _scalar(naming.system(cell.method, cell.model))
        texts = [_scalar(cell.dataset), name, f"{found.answered:,}", f"{found.errors:,}"]
        cells = [html.escape(text) for text in texts] + [_small(x) for x in (*rates, *others)]
        kinds = ["first"] * (cell.dataset != before) + ["reference"] * (cell.method == reference)
        before = cell.dataset
        yield f'<tr class="{" ".join(kinds)}">' + "".join(f"<td>{x}</td>" for x in cells) + "</tr>"
    yield "</table></div>"
    yield (
        "<p>In brackets: 95 % bootstrap intervals over questions. Tests, costs and judges are in "
        "card.md.</p>"
    )
    for figure in figures:
        source = base64.b64encode(figure.read_bytes()).decode("ascii")
        alt = html.escape(_ALT.get(figure.stem, figure.stem))
        yield f'<img src="data:image/png;base64,{source}" alt="{alt}">'


def _small(text: str) -> str:
    """The interval behind a number in small print."""
    value, bracket, rest = html.escape(text).partition(" [")
    return f"{value} <small>[{rest}</small>" if bracket else value


def _scalar(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
