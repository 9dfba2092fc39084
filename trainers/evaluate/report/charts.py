"""The figures of an evaluation: bars as in the paper's Figure 1, and accuracy against searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from research_rl.trainers.callbacks import DPI, drawable, save_picture
from research_rl.trainers.evaluate.measures import Cell, Interval
from research_rl.trainers.evaluate.report.card import Naming
from research_rl.trainers.evaluate.report.summary import CellSummary, Summary

_INK = "#33383d"
_SOFT = "#6b737b"
_GRID = "#e3e5e7"
_REFERENCE = "#c0392b"
# blues and greys for the others, so that the reference stands out
_OTHERS = ("#aab4be", "#8fb3d9", "#5b8fc7", "#2f6bb0", "#1b4a85", "#7d8a97", "#b9a5cf", "#8470a8")
_MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
_MAX_ROW = 4  # data sets in one row of bars


def figure1(summary: Summary, path: Path, measure: str = "em", reference: str = "ReSearch") -> Path:
    """Draw one group of bars for each data set, a bar for each method, and return the path.

    Whiskers are the 95 % intervals, the numbers are percent, and the reference stands out.

    Args:
        summary: of the rows.
        path: the PNG.
        measure: a rate, such as em or f1.
        reference: the method that is coloured.
    """
    return save_picture(bars_figure(summary, measure, reference), path)


def bars_figure(
    summary: Summary, measure: str = "em", reference: str = "ReSearch", most: int = _MAX_ROW
) -> Figure:
    """Return the figure of ``figure1``; ``most`` data sets stand beside each other."""
    systems = _systems(summary)
    figure, panels = _panels(summary, measure, most, 0.62 * len(systems) + 0.7, 3.5)
    naming, colours = Naming(summary.cells), _colours(systems, reference)
    for dataset, axes in panels.items():
        found = {(c.method, c.model): s for c, s in summary.cells.items() if c.dataset == dataset}
        _bars(axes, dataset, [found.get(s) for s in systems], measure, colours)
    first = figure.axes[0]
    first.set_ylim(0, 1.12 * _top(summary, measure))
    handles = [
        first.bar([0], [0], color=colour, label=drawable(naming.system(*system)))
        for system, colour in zip(systems, colours, strict=True)
    ]
    _add_legend(figure, handles, handlelength=1.1, columnspacing=1.6)
    return figure


def _panels(
    summary: Summary, measure: str, most: int, width: float, height: float
) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel for each data set, ``most`` in a row; sizes of a panel in inches."""
    datasets = list(dict.fromkeys(cell.dataset for cell in summary.cells))
    columns = max(1, min(most, len(datasets)))
    rows = -(-max(1, len(datasets)) // columns)
    size = (max(4.8, columns * width), height * rows + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(datasets) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(_label(measure), color=_SOFT, fontsize=9)
    return figure, dict(zip(datasets, grid.flat, strict=False))


def _add_legend(figure: Figure, handles: Sequence[Any], **spacing: float) -> None:
    """Name the systems below the panels."""
    beside = figure.axes[0].get_gridspec()
    assert beside is not None
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(5 if beside.ncols > 1 else 2, len(handles)),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        **spacing,
    )


def _systems(summary: Summary) -> list[tuple[str, str]]:
    return list(dict.fromkeys((cell.method, cell.model) for cell in summary.cells))


def _colours(systems: Sequence[tuple[str, str]], reference: str) -> list[str]:
    quiet = iter(_OTHERS * (1 + len(systems) // len(_OTHERS)))
    strong = iter((_REFERENCE, "#e67e22", "#d4a017", "#8e3b2f") * len(systems))
    return [next(strong) if method == reference else next(quiet) for method, _ in systems]


def _top(summary: Summary, measure: str) -> float:
    """The highest whisker of all panels, in percent, at least 5."""
    intervals = (cell.measures.get(measure) for cell in summary.cells.values())
    return max([5.0, *(100 * i.high for i in intervals if i is not None and i.high is not None)])


def _label(measure: str) -> str:
    return {"em": "exact match, %", "f1": "F1, %"}.get(measure, f"{measure}, %")


def _bars(
    axes: Axes,
    dataset: str,
    found: Sequence[CellSummary | None],
    measure: str,
    colours: Sequence[str],
) -> None:
    for place, (summary, colour) in enumerate(zip(found, colours, strict=True)):
        interval = None if summary is None else summary.measures.get(measure)
        if interval is None or interval.mean is None:
            axes.text(place, 0.5, "–", ha="center", color=_SOFT, fontsize=9)
            continue
        mean, low, high = _scaled(interval)
        axes.bar(place, mean, width=0.84, color=colour, zorder=2)
        whisker: dict[str, Any] = {
            "ecolor": _INK,
            "elinewidth": 0.9,
            "capsize": 2.5,
            "capthick": 0.9,
        }
        axes.errorbar(place, mean, [[mean - low], [high - mean]], fmt="none", zorder=3, **whisker)
        axes.annotate(
            f"{mean:.1f}",
            (place, high),
            (0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=_INK,
        )
    n = {s.answered for s in found if s is not None}
    counted = f"n = {min(n):,}" if len(n) == 1 else f"n = {min(n):,} to {max(n):,}" if n else ""
    axes.set_title(drawable(dataset), fontsize=10.5, fontweight="bold", color=_INK, pad=8)
    axes.set_xlabel(counted, fontsize=8.5, color=_SOFT)
    axes.set_xlim(-0.6, len(found) - 0.4)
    axes.set_xticks([])
    _finish(axes)


def _scaled(interval: Interval) -> tuple[float, float, float]:
    """Mean, low and high in percent."""
    assert interval.mean is not None
    assert interval.low is not None
    assert interval.high is not None
    return 100 * interval.mean, 100 * interval.low, 100 * interval.high


def accuracy_against_searches(
    summary: Summary, path: Path, measure: str = "em", reference: str = "ReSearch"
) -> Path:
    """Draw accuracy against searches: a panel for each data set, a mark for each method.

    The bars of a mark are the 95 % intervals of the number of searches and of the measure.
    """
    return save_picture(searches_figure(summary, measure, reference), path)


def searches_figure(
    summary: Summary, measure: str = "em", reference: str = "ReSearch", most: int = _MAX_ROW
) -> Figure:
    """Return the figure of ``accuracy_against_searches``; ``most`` panels stand in a row."""
    systems = _systems(summary)
    figure, panels = _panels(summary, measure, most, 2.9, 3.1)
    naming, colours = Naming(summary.cells), _colours(systems, reference)
    for dataset, axes in panels.items():
        for number, (method, model) in enumerate(systems):
            cell = Cell(dataset, model, method)
            if cell in summary.cells:
                mark = _MARKS[number % len(_MARKS)]
                _point(axes, summary.cells[cell], measure, colours[number], mark)
        axes.set_title(drawable(dataset), fontsize=10.5, fontweight="bold", color=_INK)
        axes.set_xlabel("searches per question", color=_SOFT, fontsize=9)
        _limits(axes)
        _finish(axes)
    top = _top(summary, measure)
    first = figure.axes[0]
    first.set_ylim(-0.02 * top, 1.06 * top)
    handles = [
        first.plot([], [], _MARKS[i % len(_MARKS)], color=c, label=drawable(naming.system(*s)))[0]
        for i, (s, c) in enumerate(zip(systems, colours, strict=True))
    ]
    _add_legend(figure, handles, handletextpad=0.3)
    return figure


def _point(axes: Axes, found: CellSummary, measure: str, colour: str, mark: str) -> None:
    rate, searches = found.measures.get(measure), found.measures.get("searches")
    if rate is None or searches is None or rate.mean is None or searches.mean is None:
        return
    y, low, high = _scaled(rate)
    assert searches.low is not None
    assert searches.high is not None
    across = [[searches.mean - searches.low], [searches.high - searches.mean]]
    axes.errorbar(
        searches.mean,
        y,
        [[y - low], [high - y]],
        across,
        fmt=mark,
        color=colour,
        markersize=7,
        markeredgewidth=0,
        elinewidth=1.1,
        clip_on=False,
        zorder=3,
    )


def _limits(axes: Axes) -> None:
    axes.set_xlim(left=-0.15, right=max(1.2, axes.get_xlim()[1]))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _finish(axes: Axes) -> None:
    axes.tick_params(colors=_SOFT, labelsize=8.5, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
