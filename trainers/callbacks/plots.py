"""Pictures made from ``metrics.csv``: the learning curve of one or more runs, and a run's health.

``learning_curves`` draws several seeds over each other, with their mean.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from research_rl.trainers.callbacks.svg import (
    FAINT,
    GRID,
    INK,
    SERIES,
    SOFT,
    drawable,
    save_picture,
)

INCHES = (9.6, 3.4)
DPI = 150
_HEALTH_INCHES = (13.2, 6.6)
_HEALTH_PANELS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("reward, F1, format", {"train/reward": "reward", "train/f1": "F1", "train/format": "format"}),
    ("nats a token", {"train/entropy": "entropy", "health/logprob": "log-prob, all"}),
    (
        "log-prob of rollouts, nats a token",
        {"health/right_logprob": "right", "health/wrong_logprob": "wrong"},
    ),
    (
        "distance",
        {
            "train/kl": "KL to reference",
            "train/mismatch_k3": "KL sampler, learner",
            "train/mismatch_5pct": "share 5 % off",
            "train/clip_frac": "share clipped",
        },
    ),
    (
        "groups that teach nothing",
        {
            "train/frac_zero_std": "equal rewards",
            "health/all_right": "all right",
            "health/all_wrong": "all wrong",
        },
    ),
    (
        "searching",
        {
            "health/closed_book": "closed book",
            "health/closed_book_right": "right of those",
            "health/duplicate_queries": "repeated queries",
            "health/empty_queries": "empty queries",
        },
    ),
    (
        "writing",
        {
            "health/broken_tags": "broken tags",
            "health/forged_results": "forged results",
            "health/repetition": "repetition",
            "health/empty_thoughts": "empty thoughts",
            "train/truncated": "cut off",
        },
    ),
    (
        "length",
        {
            "train/sampled_tokens": "tokens a rollout",
            "health/turn_tokens": "tokens a turn",
            "health/thought_words": "words a thought",
        },
    ),
)
_WIDE, _LINE = 42, 12.5
"""Letters of a legend's line above one panel, and points of its height."""
_LEGEND: dict[str, Any] = {
    **{"frameon": False, "fontsize": 8.5, "handlelength": 1.2, "labelcolor": INK},
    **{"columnspacing": 1.2, "handletextpad": 0.5, "labelspacing": 0.2},
}
_SHARES = ("reward, F1, format", "groups that teach nothing", "searching", "writing")
_PART_KEY = re.compile(r"(?:train|val)/part_(.+?)(?<!hop)")
_HOP_KEY = re.compile(r"(?:train|val)/(?:f1|searches)_(\d+)hop")


class Curve(NamedTuple):
    """One metric over the steps at which it was logged."""

    steps: list[int]
    values: list[float]


Curves = dict[str, Curve]


def read_metrics(path: str | Path) -> Curves:
    """Read the ``metrics.csv`` of a run: one row an event, blank where silent.

    Cells that are empty or not a finite number are left out; of two values of a step the later
    one counts, as after a resume.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found: dict[str, dict[int, float]] = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = _number(row.get("step"))
            if step is None:
                continue
            for key, cell in row.items():
                value = _number(cell)
                if value is not None and key != "step":
                    found.setdefault(key, {})[int(step)] = value
    ordered = {key: sorted(points.items()) for key, points in found.items()}
    return {key: Curve([s for s, _ in p], [v for _, v in p]) for key, p in ordered.items()}


def _number(cell: Any) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def learning_curve(metrics_csv: str | Path, out_png: str | Path) -> Path:
    """Draw one run: F1 and searches by hop, reward and format. See :func:`learning_curves`."""
    return learning_curves([metrics_csv], out_png)


def learning_curves(metrics_csvs: Sequence[str | Path], out_png: str | Path) -> Path:
    """Draw several seeds of a run over each other and return the path of the picture.

    ``compared_curves`` draws runs that are no seeds of each other. Validation has markers,
    training is thin and faint. With several seeds each one's validation
    is thin and their mean, where all have a value, is thick. Whatever a file does not hold is not
    drawn. The picture is written beside its place and renamed into it.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: no file is given.
    """
    if not metrics_csvs:
        raise ValueError("metrics_csvs must name at least one metrics.csv, got none")
    return save_picture(curves_figure([read_metrics(p) for p in metrics_csvs]), Path(out_png))


def curves_figure(runs: Sequence[Curves], columns: int = 3) -> Figure:
    """Return the figure of one run or several seeds: F1 and searches by hop, reward and format.

    Args:
        runs: of ``read_metrics``.
        columns: of panels: 3, or 1 for a phone.
    """
    figure, (left, middle, right) = _panels(3, columns, INCHES)
    _draw_by_hop(left, runs, "f1", "F1")
    left.set_ylim(-0.03, 1.03)
    _draw_by_hop(middle, runs, "searches", "searches per question")
    middle.set_ylim(bottom=0)
    _draw_reward(right, runs)
    for axes in (left, middle, right):
        _finish(axes)
    figure.supxlabel(_caption(runs), fontsize=8.5, color=SOFT)
    return figure


def compared_curves(metrics_csvs: Mapping[str, str | Path], out_png: str | Path) -> Path:
    """Draw different runs over each other, each in a colour of its own, and return the path.

    >>> compared_curves({"GRPO": "runs/a/metrics.csv", "DAPO": "runs/b/metrics.csv"}, "both.png")
    ... # doctest: +SKIP

    Args:
        metrics_csvs: the file of each run, by what the legend calls it.
        out_png: where the picture goes.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: no file is given.
    """
    if not metrics_csvs:
        raise ValueError("metrics_csvs must name at least one run and its file, got none")
    runs = {label: read_metrics(path) for label, path in metrics_csvs.items()}
    return save_picture(compared_figure(runs), Path(out_png))


def compared_figure(runs: Mapping[str, Curves], columns: int = 3) -> Figure:
    """Return the figure of different runs over each other, by what the legend calls them."""
    figure, panels = _panels(3, columns, INCHES)
    titles = {"f1": "F1", "searches": "searches per question", "reward": "reward"}
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        axes.set_title(title)
        for number, (label, run) in enumerate(runs.items()):
            _draw(axes, [run], metric, SERIES[number % len(SERIES)], drawable(label))
        axes.set_ylim(bottom=min([0.0, *(1.05 * value for value in _drawn(axes))]))
        _finish(axes, legend=False)
    handles = [
        axes.plot([], [], color=SERIES[number % len(SERIES)], linewidth=1.8)[0]
        for number in range(len(runs))
    ]
    names = [drawable(label) for label in runs]
    fit = 40 * columns // (6 + max(map(len, names), default=0))
    figure.legend(handles, names, loc="outside upper left", ncols=max(1, fit), **_LEGEND)
    figure.supxlabel(_caption([{}]), fontsize=8.5, color=SOFT)
    return figure


def health_picture(metrics_csv: str | Path, out_png: str | Path) -> Path:
    """Draw the health of a run in eight panels and return the path of the picture.

    A vertical line stands where a CollapseGuard acted. Whatever the file does not hold is not
    drawn.

    Raises:
        FileNotFoundError: the file is not there.
    """
    return save_picture(health_figure(read_metrics(metrics_csv)), Path(out_png))


def health_figure(run: Curves, columns: int = 4) -> Figure:
    """Return the figure of a run's health, see ``health_picture``; one column is for a phone."""
    figure, panels = _panels(len(_HEALTH_PANELS), columns, _HEALTH_INCHES)
    for axes, (title, names) in zip(panels, _HEALTH_PANELS, strict=True):
        axes.set_title(title)
        for name, colour in zip(names, SERIES, strict=False):
            if name in run:
                axes.plot(*run[name], color=colour, linewidth=1.4, label=names[name])
        for step in _acted(run):
            axes.axvline(step, color=INK, linestyle=(0, (4, 2)), linewidth=0.9, zorder=1)
        if title in _SHARES:
            _show_all(axes)
        _finish(axes)
    if _acted(run):
        figure.supxlabel("dashed: the guard acted", fontsize=8.5, color=SOFT)
    return figure


def _panels(number: int, columns: int, inches: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels; in one column each is as wide as a phone."""
    rows = -(-number // columns)
    size = inches if columns > 1 else (4.3, 2.7 * rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _acted(run: Curves) -> list[int]:
    """Return the steps at which the number of the guard's actions rose."""
    steps, counts = run.get("guard/actions", Curve([], []))
    return [
        s for s, now, before in zip(steps, counts, [0.0, *counts], strict=False) if now > before
    ]


def _caption(runs: Sequence[Curves]) -> str:
    kinds = ["dots: validation, thin: training"]
    if len(runs) > 1:
        kinds = [f"dots: validation, mean of {len(runs)} seeds, thin: each seed"]
    if _hops(runs):
        kinds.append("dotted: as many searches as hops")
    return "; ".join(kinds)


def _hops(runs: Iterable[Curves]) -> list[int]:
    found = (match for run in runs for key in run if (match := _HOP_KEY.fullmatch(key)))
    return sorted({int(match[1]) for match in found})


def _draw_by_hop(axes: Axes, runs: Sequence[Curves], metric: str, title: str) -> None:
    """Draw a metric for each number of hops; without hops, for all questions together."""
    axes.set_title(title)
    hops = _hops(runs)
    for number, hop in enumerate(hops):
        colour = SERIES[number % len(SERIES)]
        if metric == "searches":
            axes.axhline(hop, color=colour, linestyle=(0, (1, 2)), linewidth=1, zorder=1)
        _draw(axes, runs, f"{metric}_{hop}hop", colour, f"{hop} hop" + "s" * (hop > 1))
    if not hops:
        _draw(axes, runs, metric, SERIES[0], "all questions")


def _draw(axes: Axes, runs: Sequence[Curves], metric: str, colour: str, label: str) -> None:
    """Draw training faintly and validation, or the seeds' validation and its mean, clearly."""
    seeds = [run[f"val/{metric}"] for run in runs if f"val/{metric}" in run]
    several = len(runs) > 1
    for run in runs:
        if f"train/{metric}" in run and not (several and seeds):
            alpha = 0.4 if seeds else 1.0
            axes.plot(*run[f"train/{metric}"], color=colour, linewidth=0.9, alpha=alpha)
    if several:
        for seed in seeds:
            axes.plot(*seed, color=colour, linewidth=0.8, alpha=0.45)
        seeds = [_mean(seeds)] if seeds else []
    for seed in seeds:
        axes.plot(*seed, color=colour, linewidth=1.8, marker="o", markersize=3.6, zorder=3)
    if seeds or any(f"train/{metric}" in run for run in runs):
        axes.plot([], [], color=colour, linewidth=1.8, label=label)


def _mean(curves: Sequence[Curve]) -> Curve:
    """Average curves at the steps that all of them have."""
    points = [dict(zip(*curve, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*(set(p) for p in points)))
    return Curve(steps, [sum(p[s] for p in points) / len(points) for s in steps])


def _draw_reward(axes: Axes, runs: Sequence[Curves]) -> None:
    axes.set_title("reward and format")
    _draw(axes, runs, "format", FAINT, "format right")
    _draw(axes, runs, "reward", INK, "reward")
    names = {match[1] for run in runs for key in run if (match := _PART_KEY.fullmatch(key))}
    for number, name in enumerate(sorted(names)):
        _draw(axes, runs, f"part_{name}", SERIES[number % len(SERIES)], name)
    _show_all(axes)


def _drawn(axes: Axes) -> list[float]:
    return [float(value) for line in axes.lines for value in np.asarray(line.get_ydata())]


def _show_all(axes: Axes) -> None:
    """Show 0 to 1, and whatever is drawn beyond: rewards may be of any size."""
    values = _drawn(axes)
    lowest, highest = min(values, default=0.0), max(values, default=1.0)
    axes.set_ylim(min(-0.03, 1.05 * lowest), max(1.03, 1.03 * highest))


def _finish(axes: Axes, legend: bool = True) -> None:
    """Set type, grid and legend; the legend stands between title and data, never over data."""
    labels = axes.get_legend_handles_labels()[1]
    columns = max(1, min(len(labels), _WIDE // (5 + max(map(len, labels), default=0))))
    lines = -(-len(labels) // columns) if legend else 0
    font: dict[str, Any] = {"fontsize": 10.5, "fontweight": "bold", "color": INK}
    title = axes.get_title()
    axes.set_title("")  # the pad is that of the last title which is set
    axes.set_title(title, loc="left", pad=5 + _LINE * lines, **font)
    axes.set_xlabel("step", color=SOFT, fontsize=9, labelpad=1)
    axes.tick_params(colors=SOFT, labelsize=9, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    if not labels:
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center"}
        axes.text(0.5, 0.5, "nothing logged yet", color=SOFT, **place)
    elif legend:
        above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0)}
        axes.legend(ncols=columns, borderaxespad=0.2, borderpad=0, **above, **_LEGEND)
