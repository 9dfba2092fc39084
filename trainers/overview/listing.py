"""The runs below a folder, one line each: name, state, step, best F1, searches, verdict, change."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from research_rl.envs.system import printable
from research_rl.trainers.overview.bands import bands_of
from research_rl.trainers.overview.facts import best_validation, state_of, verdict_of_run, when
from research_rl.trainers.overview.folder import RunFolder, is_run

_DEEPEST = 4
_HEADS = ("run", "state", "step", "best val F1", "searches", "verdict", "last change")
_PASSED_BY = {"checkpoints", "rollouts", "world", "warmstart", "policy", "tensorboard", "records"}
_OF_A_RUN = {"test", "validate", "predict"}
"""Folders in a run's folder that have metrics of their own and are no runs."""


class RunLine(NamedTuple):
    """A run in short; texts as they are shown, but for ``changed``, in seconds since 1970."""

    name: str
    state: str
    step: str
    best: str
    searches: str
    verdict: str
    changed: float


def runs_in(folder: Path, deepest: int = _DEEPEST) -> list[RunLine]:
    """Return the runs below a folder, the one that changed last first.

    Args:
        folder: looked through; it may be a run itself.
        deepest: how many folders deep.

    Raises:
        NotADirectoryError: it is no folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} must be a folder with runs, and is none")
    found = [_line(path, folder) for path in _runs(folder, deepest)]
    return sorted(found, key=lambda line: (-line.changed, line.name))


def _runs(folder: Path, deepest: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
    if not deepest:
        return
    try:
        inner = sorted(
            entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)
        )
    except OSError:  # not ours to read
        return
    here = _PASSED_BY | _OF_A_RUN if is_run(folder) else set()
    for name in inner:
        if not name.startswith(".") and name not in here:
            yield from _runs(folder / name, deepest - 1)


def _line(path: Path, folder: Path) -> RunLine:
    run = RunFolder.read(path, rollouts=False)
    state, best = state_of(run), best_validation(run)
    searches = run.last("val/searches" if run.metric("val/searches") else "train/searches")
    of = f"/{state.total:,}" if state.total is not None and state.total >= state.done else ""
    name = path.relative_to(folder).as_posix()
    return RunLine(
        run.name if name == "." else name,
        state.name,
        f"{state.done:,}{of}",
        "–" if best is None else f"{best[1]:.3f} at {best[0]:,}",
        "–" if searches is None else f"{searches:.2f}",
        verdict_of_run(run, bands_of(run)).grade,
        run.changed,
    )


def runs_table(lines: Sequence[RunLine]) -> str:
    """Return the runs as a table for a terminal."""
    rows = [_HEADS, *((*line[:-1], when(line.changed)) for line in lines)]
    table = [[printable(" ".join(cell.split())) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )
