"""Runs beside each other: what differs in their configs, their curves, and their answers in pairs.

``comparison_of([RunFolder.read(a), RunFolder.read(b)])`` tests where both were asked the same
questions: the latest validation of each, and evaluations that lie in their folders. The first run
is the one that the others are compared with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from research_rl.envs.system import printable
from research_rl.trainers.callbacks import compared_figure, picture_of
from research_rl.trainers.evaluate.measures import Paired, holm, paired_test
from research_rl.trainers.overview.answered import CellPair, pairs_of
from research_rl.trainers.overview.bands import bands_of
from research_rl.trainers.overview.facts import (
    best_validation,
    spent_time,
    state_of,
    time_of_iterations,
    verdict_of_run,
)
from research_rl.trainers.overview.folder import JsonRow, RunFolder, number, texts
from research_rl.trainers.overview.follow import Mark, mark_of
from research_rl.trainers.overview.hops import hop_curves
from research_rl.trainers.overview.page import PAGE, ROOM
from research_rl.trainers.overview.shipped import differing
from research_rl.trainers.viewer import html_page

MEASURED = ("em", "f1")
_MOST_EXAMPLES, _MOST_OPTIONS = 40, 80
_Question = tuple[str, str]
"""Id and text: two files may number different questions alike."""


class Against(NamedTuple):
    """The first run against another one in one measure; ``p`` is corrected for all lines."""

    asked: str
    measure: str
    other: str
    paired: Paired
    p: float | None


class RunAnswer(NamedTuple):
    """How a run answered a question."""

    mark: Mark
    text: str
    link: str


class Example(NamedTuple):
    """A question that the runs did not answer alike; None where a run was not asked it."""

    question: str
    gold: str
    answers: list[RunAnswer | None]


@dataclass(frozen=True)
class RunComparison:
    """Everything that is said of several runs.

    Args:
        labels: a name for each run.
        facts: name of a line -> a value for each run.
        options: name of an option -> its value in each run, where they differ.
        against: tests, all corrected together (Holm).
        examples: questions of the latest validations that were not answered alike.
        notes: what a reader must know.
    """

    labels: list[str]
    facts: Mapping[str, list[str]]
    options: Mapping[str, list[str]]
    against: list[Against]
    examples: list[Example]
    notes: list[str]


def comparison_of(runs: Sequence[RunFolder], resamples: int = 10_000) -> RunComparison:
    """Return what differs between runs.

    Args:
        runs: at least two, the one to compare with first.
        resamples: of the paired tests.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(runs) < 2:
        raise ValueError(f"at least two runs must be given to compare, got {len(runs)}")
    labels = labels_of([run.path for run in runs])
    latest = [_latest_validation(run) for run in runs]
    notes = [
        f"{label}: {said}" for label, run in zip(labels, runs, strict=True) for said in run.problems
    ]
    notes += _untrained(labels, latest)
    notes += _of_other_questions(labels, latest)
    paired = [pairs_of(runs[0], run) for run in runs[1:]]
    for label, (_, alone) in zip(labels[1:], paired, strict=True):
        notes += [f"{labels[0]} and {label}: {said}" for said in alone]
    against = _corrected(
        [*_of_validation(labels, latest, resamples), *_of_rows(paired, labels, resamples)]
    )
    if not against:
        notes.append("No two runs were asked the same questions; their curves are all there is.")
    return RunComparison(
        labels,
        _facts(runs),
        differing([run.config for run in runs]),
        against,
        list(_examples([rows for _, rows in latest], runs)),
        notes,
    )


def labels_of(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each folder, all different: as much of the path as that takes."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({place})" for place, part in enumerate(parts, 1)]


def _facts(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    lines: dict[str, list[str]] = {}
    curves = [{curve.hops: curve for curve in hop_curves(run)} for run in runs]
    kinds = {hops: curve.name for found in curves for hops, curve in sorted(found.items())}

    def add(name: str, value: str) -> None:
        lines.setdefault(name, []).append(value)

    for run, by_hops in zip(runs, curves, strict=True):
        best = best_validation(run)
        spent = time_of_iterations(run)
        verdict = verdict_of_run(run, bands_of(run))
        add("state", str(state_of(run)))
        add("verdict", verdict.grade)
        add("best validation F1", "–" if best is None else f"{best[1]:.3f} at step {best[0]:,}")
        add("latest validation F1", _fixed(run.last("val/f1")) + _at(run.metric("val/f1")))
        for hops in sorted(kinds) if len(kinds) > 1 else ():
            points = by_hops[hops].points if hops in by_hops else []
            add(f"latest validation F1, {kinds[hops]}", _fixed(points[-1][1]) if points else "–")
        add("latest reward in training", _fixed(run.last("train/reward")))
        add("searches a question, validation", _fixed(run.last("val/searches"), 2))
        add("tokens a rollout", _fixed(run.last("train/sampled_tokens"), 1))
        add("time of iterations", spent_time(spent) if spent else "–")
    return lines


def _at(points: Sequence[tuple[int, float]]) -> str:
    return f" at step {points[-1][0]:,}" if points else ""


def _fixed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


_Latest = tuple[int | None, dict[_Question, tuple[int, JsonRow]]]
"""Step of the latest validation, and its rows with their places on its page."""


def _latest_validation(run: RunFolder) -> _Latest:
    rows = [row for row in run.rollouts if row["split"] == "val"]
    step = max((int(row["step"]) for row in rows), default=None)
    found: dict[_Question, tuple[int, JsonRow]] = {}
    for place, row in enumerate((r for r in rows if r["step"] == step), 1):
        found.setdefault((texts(row["question_id"]), texts(row["question"])), (place, row))
    return step, found


def _of_validation(
    labels: Sequence[str], latest: Sequence[_Latest], resamples: int
) -> Iterator[Against]:
    (step, first), *others = latest
    for label, (at, rows) in zip(labels[1:], others, strict=True):
        if not first.keys() & rows.keys():
            continue
        asked = _asked(step, at)
        for measure in MEASURED:
            ours, theirs = _values(first, measure), _values(rows, measure)
            paired = paired_test(ours, theirs, resamples=resamples)
            yield Against(asked, measure, label, paired, paired.p_value)


def _asked(*steps: int | None) -> str:
    """What was asked, with the steps; what a policy answered before any training is named so."""
    if not any(steps):
        return "validation before any training step (step 0 of both)"
    if all(steps):
        return "latest validation (steps {} and {})".format(*steps)
    said = (f"step {step}" if step else "step 0, before any training step" for step in steps)
    return f"latest validation ({' and '.join(said)})"


def _untrained(labels: Sequence[str], latest: Sequence[_Latest]) -> Iterator[str]:
    """Say of whom the latest validation tells nothing of the training."""
    if names := [label for label, (step, _) in zip(labels, latest, strict=True) if step == 0]:
        yield (
            f"Validated only at step 0, before any training step: {', '.join(names)}. Those "
            "answers tell nothing of what the training did; validate later too "
            "(trainer.val_check_interval), or evaluate the runs on the same questions."
        )


def _of_other_questions(labels: Sequence[str], latest: Sequence[_Latest]) -> Iterator[str]:
    """Say whose validation asks other questions, so that its curves cannot be held against."""
    (_, first), *others = latest
    for label, (_, rows) in zip(labels[1:], others, strict=True):
        shared = len(first.keys() & rows.keys())
        if shared and first.keys() ^ rows.keys():
            yield (
                f"The latest validation rollouts of {labels[0]} are of {len(first):,} questions "
                f"and those of {label} of {len(rows):,}; {shared:,} are the same. F1, searches, "
                "reward and curves are of each run's own questions, so they say little of which "
                "run is better; the paired test looks at the shared ones alone."
            )


def _values(rows: Mapping[_Question, tuple[int, JsonRow]], measure: str) -> dict[str, float | None]:
    return {"\n".join(key): number(row.get(measure)) for key, (_, row) in rows.items()}


def _of_rows(
    found: Sequence[tuple[Sequence[CellPair], object]], labels: Sequence[str], resamples: int
) -> Iterator[Against]:
    """Evaluations in the folders: the same method, model and data set, asked the same."""
    for label, (pairs, _) in zip(labels[1:], found, strict=True):
        for asked, first, other in pairs:
            for measure in MEASURED:
                ours = {key: number(row.get(measure)) for key, row in first.items()}
                theirs = {key: number(row.get(measure)) for key, row in other.items()}
                paired = paired_test(ours, theirs, resamples=resamples)
                if paired.n:
                    yield Against(asked, measure, label, paired, paired.p_value)


def _corrected(found: Sequence[Against]) -> list[Against]:
    ordered = sorted(found, key=lambda one: (one.other, one.asked))
    known = iter(holm([one.p for one in ordered if one.p is not None]))
    return [one if one.p is None else one._replace(p=next(known)) for one in ordered]


def _examples(
    latest: Sequence[Mapping[_Question, tuple[int, JsonRow]]], runs: Sequence[RunFolder]
) -> Iterator[Example]:
    """Questions with different marks, those that most runs were asked first."""
    keys = dict.fromkeys(key for rows in latest for key in rows)
    shown = 0
    for key in keys:
        rows = [found.get(key) for found in latest]
        marks = {mark_of(row[1]) for row in rows if row is not None}
        if len(marks) < 2 or shown == _MOST_EXAMPLES:
            continue
        shown += 1
        gold = next(row[1] for row in rows if row is not None).get("answers")
        names = [texts(a, 80) for a in gold] if isinstance(gold, list) else []
        answers = [_answer(row, run) for row, run in zip(rows, runs, strict=True)]
        yield Example(key[1], " or ".join(names), answers)


def _answer(found: tuple[int, JsonRow] | None, run: RunFolder) -> RunAnswer | None:
    if found is None:
        return None
    place, row = found
    page = run.path / "rollouts" / f"val_{int(row['step']):06d}.html"
    return RunAnswer(mark_of(row), texts(row.get("prediction") or "", 80), f"{page}#{place}")


def comparison_text(found: RunComparison) -> str:
    """Return a comparison as text for a terminal."""
    parts = [_columns(["", *found.labels], [[n, *v] for n, v in found.facts.items()])]
    if found.options:
        shown = list(found.options.items())[:_MOST_OPTIONS]
        rows = [[name, *(_cut(v) for v in values)] for name, values in shown]
        parts.append("options that differ\n" + _columns(["option", *found.labels], rows))
        if more := len(found.options) - len(shown):
            parts.append(f"{more} more options differ; they are in the configs")
    else:
        parts.append("all options are alike")
    if found.against:
        rows = [against_cells(found.labels[0], one) for one in found.against]
        heads = ["difference", "measure", "points, 95 %", "p, corrected", "n", "asked"]
        parts.append("paired answers\n" + _columns(heads, rows))
    return printable("\n\n".join([*parts, *found.notes]))


def against_cells(first: str, one: Against) -> list[str]:
    """Return the cells of one test: who against whom, measure, gap, p, n, what was asked."""
    gap = one.paired
    points = "–"
    if gap.difference is not None and gap.low is not None and gap.high is not None:
        points = f"{100 * gap.difference:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
    p = "–" if one.p is None else "< 0.001" if one.p < 0.001 else f"{one.p:.3f}"
    only = f", {gap.unpaired:,} asked of one only" if gap.unpaired else ""
    names = {"em": "EM", "f1": "F1"}
    return [f"{first} – {one.other}", names[one.measure], points, p, f"{gap.n:,}{only}", one.asked]


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [[" ".join(cell.split()) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (zip(row, widths, strict=True) for row in table)
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in line).rstrip() for line in lines)


def _cut(text: str, longest: int = 48) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def comparison_page(found: RunComparison, runs: Sequence[RunFolder], out: Path) -> str:
    """Return a comparison as HTML.

    Args:
        found: of these runs.
        runs: whose curves are drawn.
        out: where the page will lie; links lead from there to the runs.
    """
    curves = {label: run.curves for label, run in zip(found.labels, runs, strict=True)}
    drawn = any(curves.values())
    base = out.absolute().parent
    pages = [
        _relative(run.path / PAGE, base) if (run.path / PAGE).is_file() else "" for run in runs
    ]
    return html_page(
        "compare.html",
        ROOM,
        title=" and ".join(found.labels) if len(found.labels) < 4 else f"{len(runs)} runs",
        found=found,
        pages=pages,
        tests=[against_cells(found.labels[0], one) for one in found.against],
        options=list(found.options.items())[:_MOST_OPTIONS],
        more=max(0, len(found.options) - _MOST_OPTIONS),
        examples=[_with_links(example, base) for example in found.examples],
        curves=picture_of(
            "F1, searches and reward of each run",
            compared_figure(curves),
            compared_figure(curves, columns=1),
        )
        if drawn
        else None,
    )


def _with_links(example: Example, base: Path) -> Example:
    def near(answer: RunAnswer | None) -> RunAnswer | None:
        if answer is None:
            return None
        file, _, place = answer.link.rpartition("#")
        there = Path(file).is_file()
        return answer._replace(link=f"{_relative(Path(file), base)}#{place}" if there else "")

    return example._replace(answers=[near(answer) for answer in example.answers])


def _relative(path: Path, base: Path) -> str:
    # quoted, so that no name of a folder is taken for a scheme such as javascript:
    return quote(Path(os.path.relpath(path.absolute(), base)).as_posix())
