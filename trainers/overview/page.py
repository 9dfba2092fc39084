"""The page of a run: ``index.html`` in its folder, one file that works from disk.

``write_run_page(Path("runs/quickstart"))`` reads the folder as it is, so that a run which is still
going on, one that died and one of an older version have a page too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from research_rl.envs.system import write_whole
from research_rl.trainers.callbacks import curves_figure, health_figure, picture_of
from research_rl.trainers.overview.bands import bands_of
from research_rl.trainers.overview.facts import (
    best_validation,
    costs_of,
    next_commands,
    spent_time,
    state_of,
    time_of_iterations,
    verdict_of_run,
    when,
)
from research_rl.trainers.overview.folder import RunFolder
from research_rl.trainers.overview.follow import followed_questions
from research_rl.trainers.overview.shipped import FullConfig, compared_with_shipped
from research_rl.trainers.viewer import html_page

ROOM = "research_rl.trainers.overview"
PAGE = "index.html"
_MOST_DIFFERENCES = 60
_NOTHING = 1e-5
_WIDE, _PHONE = (3, 4), (1, 1)
"""Panels beside each other: of curves and of health, on a wide screen and on a phone."""


class Link(NamedTuple):
    """A file of the run that can be opened from the page."""

    name: str
    href: str
    what: str


def write_run_page(
    path: Path,
    full: FullConfig | None = None,
    over: bool | None = None,
    out: Path | None = None,
    begun: bool = True,
) -> Path:
    """Write the page of a run and return its path.

    Args:
        path: the folder of the run.
        full: makes all options of a shipped config, so that those that it leaves at their defaults
            are compared too; None compares the options that it names.
        over: whether the run has ended, where the caller knows; None asks its lock.
        out: the file; None is ``index.html`` in the folder. Its links lead to the run's folder.
        begun: refuse a folder in which there is nothing of a run yet.

    Raises:
        FileNotFoundError: it is no folder of a run.
    """
    run = RunFolder.read(path, begun=begun)
    return write_whole(out or path / PAGE, run_page(run, full, over))


def run_page(run: RunFolder, full: FullConfig | None = None, over: bool | None = None) -> str:
    """Return the page of a run as HTML; see ``write_run_page``."""
    bands = bands_of(run)
    state, verdict = state_of(run, over), verdict_of_run(run, bands)
    compared = compared_with_shipped(run, full)
    steps, followed = followed_questions(run)
    return html_page(
        "run.html",
        ROOM,
        title=run.name,
        state=state,
        verdict=verdict,
        tiles=list(_tiles(run)),
        commands=next_commands(run, state, verdict.grade),
        curves=picture_of(
            "F1, searches and reward over the steps",
            curves_figure([run.curves], _WIDE[0]),
            curves_figure([run.curves], _PHONE[0]),
        )
        if run.curves
        else None,
        health=picture_of(
            "Signs of health over the steps",
            health_figure(run.curves, _WIDE[1]),
            health_figure(run.curves, _PHONE[1]),
        )
        if bands
        else None,
        bands=[(band, _value(band.now), _value(band.early)) for band in bands],
        few=bool(bands) and all(band.early is None for band in bands),
        steps=steps,
        followed=followed,
        compared=compared,
        shown=compared.differences[:_MOST_DIFFERENCES],
        more=len(compared.differences[_MOST_DIFFERENCES:]),
        costs=costs_of(run),
        links=list(_links(run)),
        problems=run.problems,
        changed=when(run.changed),
    )


def _tiles(run: RunFolder) -> Iterator[tuple[str, str, str]]:
    """The numbers at the head of the page: name, value, note."""
    if (best := best_validation(run)) is not None:
        step, value = best
        yield "best validation F1", f"{value:.2f}", f"at step {step:,}"
        first = run.metric("val/f1")[0][1]
        yield "validation F1 now", _value(run.last("val/f1")), f"began with {_value(first)}"
    for name, what in (("reward", "reward"), ("searches", "searches a question")):
        for split, where in (("val", "validation"), ("train", "training")):
            if points := run.metric(f"{split}/{name}"):
                first, now = points[0][1], points[-1][1]
                yield f"{what}, {where}", _value(now), f"began with {_value(first)}"
                break
    if spent := time_of_iterations(run):
        yield "time of iterations", spent_time(spent), ""


def _value(value: float | None) -> str:
    """A number as a person reads it; what is nearly nothing is 0."""
    if value is None:
        return "–"
    size = abs(value)
    if size < _NOTHING:
        return "0"
    return f"{value:,.0f}" if size >= 100 else f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


_FILES = {
    "rollouts/index.html": "rollouts of training and validation",
    "rollouts/questions.html": "the same questions at two steps, side by side",
    "test/rollouts/index.html": "rollouts of `research test`",
    "metrics.csv": "every number that was logged",
    "config.yaml": "all settings",
    "signal.jsonl": "verdicts of the signal check",
    "guard.jsonl": "what the guard saw and did",
    "learning_curve.png": "the curves as a picture",
    "health.png": "health as a picture",
}


def _links(run: RunFolder) -> Iterator[Link]:
    for answers in run.answers:
        report = f"{answers.folder}/report.html"
        if (run.path / report).is_file():
            yield Link(report, quote(report), f"evaluation, {len(answers.rows):,} answers")
    for name, what in _FILES.items():
        if (run.path / name).is_file():
            yield Link(name, name, what)
