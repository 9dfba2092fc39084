"""The learning curve: what it reads, that it draws whatever is there, and that it is never half."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from research_rl.trainers.callbacks import plots
from research_rl.trainers.callbacks.plots import (
    compared_curves,
    learning_curve,
    learning_curves,
    read_metrics,
)


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    keys = sorted({key for row in rows for key in row})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)
    return path


def run(path: Path, shift: float = 0.0) -> Path:
    rows: list[dict[str, object]] = []
    for step in range(6):
        if step % 2 == 0:
            rows.append({"step": step, "val/f1_1hop": 0.5 + shift, "val/f1_2hop": 0.1 * step})
            rows[-1] |= {"val/searches_1hop": 1.0, "val/searches_2hop": 2.0}
        rows.append({"step": step, "train/f1_1hop": 0.4, "train/reward": 0.3, "train/loss": 1})
    return write(path, rows)


def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Keeps what is drawn instead of saving it."""
    kept: list[Figure] = []

    def save(figure: Figure, target: Path) -> Path:
        kept.append(figure)
        return target

    monkeypatch.setattr(plots, "save_picture", save)
    return kept


@pytest.mark.parametrize("values", [(0.0, 1.0), (0.0, 2.5), (-1.0, 0.2), (-3.0, -2.0), (-1.0, 4.0)])
def test_a_reward_of_any_size_is_seen(tmp_path: Path, values: tuple[float, float]) -> None:
    rows = [{"step": step, "train/reward": value} for step, value in enumerate(values)]
    curves = read_metrics(write(tmp_path / "metrics.csv", rows))
    panels = [
        plots.curves_figure([curves]).axes[2],
        plots.health_figure(curves).axes[0],
        plots.compared_figure({"one": curves}).axes[2],
    ]
    for place, axes in enumerate(panels):
        low, high = axes.get_ylim()
        assert low <= min(values) < max(values) <= high
        assert low <= (-0.03 if place < 2 else 0)
        if place < 2:
            assert (low, high) == (-0.03, 1.03) or values != (0.0, 1.0)
            assert high >= 1.03


def drawn(axes: Axes) -> list[tuple[list[float], list[float]]]:
    """The lines with more than two points, i.e. without legend entries and rules."""
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    return [line for line in lines if len(line[0]) > 2]


def test_reads_rows_with_gaps(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "train/f1": 0.2},
        {"step": 0, "val/f1": 0.1, "train/f1": ""},
        {"step": 1, "val/f1": "nan"},
        {"step": 1, "train/f1": 0.3},
        {"step": "", "train/f1": 0.9},
    ]
    metrics = read_metrics(write(tmp_path / "metrics.csv", rows))
    assert metrics == {"train/f1": ([1], [0.3]), "val/f1": ([0], [0.1])}


def test_each_hop_has_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = figures(monkeypatch)
    learning_curve(run(tmp_path / "metrics.csv"), tmp_path / "curve.png")
    f1, searches, reward = kept[0].axes
    labels = [axes.get_legend_handles_labels()[1] for axes in (f1, searches, reward)]
    assert labels == [["1 hop", "2 hops"], ["1 hop", "2 hops"], ["reward"]]
    validation = ([0, 2, 4], [0.5, 0.5, 0.5])
    training = ([0, 1, 2, 3, 4, 5], [0.4] * 6)
    assert drawn(f1)[:2] == [training, validation]
    rules = [line.get_ydata()[0] for line in searches.lines if line.get_linestyle() != "-"]
    assert rules == [1, 2]


def test_seeds_and_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = figures(monkeypatch)
    files = [run(tmp_path / f"{i}.csv", shift=i / 10) for i in range(3)]
    learning_curves(files, tmp_path / "curve.png")
    lines = [values[0] for _, values in drawn(kept[0].axes[0])]
    assert lines[:4] == pytest.approx([0.5, 0.6, 0.7, 0.6]), "three seeds, then their mean"


def test_runs_that_are_compared_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = figures(monkeypatch)
    rows = [{"step": n, "val/f1": n / 9, "val/searches": 1, "train/reward": 0.2} for n in range(4)]
    files = {name: write(tmp_path / f"{name}.csv", rows) for name in ("GRPO", "DAPO")}
    compared_curves(files, tmp_path / "both.png")
    for axes in kept[0].axes:
        assert axes.get_legend_handles_labels()[1] == ["GRPO", "DAPO"]
        assert len({line.get_color() for line in axes.lines}) == 2, "a colour each, and no mean"
    with pytest.raises(ValueError, match="at least one run"):
        compared_curves({}, tmp_path / "both.png")


def test_a_run_without_hops_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = figures(monkeypatch)
    rows = [{"step": s, "train/f1": 0.1, "train/searches": 2.0} for s in range(4)]
    learning_curve(write(tmp_path / "metrics.csv", rows), tmp_path / "curve.png")
    assert kept[0].axes[0].get_legend_handles_labels()[1] == ["all questions"]
    assert len(drawn(kept[0].axes[1])) == 1


@pytest.mark.parametrize("rows", [[], [{"step": 0, "train/loss": 1.0}], [{"epoch": 0}]])
def test_draws_what_is_there(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    out = learning_curve(write(tmp_path / "metrics.csv", rows), tmp_path / "new" / "curve.png")
    with Image.open(out) as picture:
        assert picture.size == (1440, 510)
    assert [p.name for p in out.parent.iterdir()] == ["curve.png"]


def test_a_failed_picture_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Figure, target: BinaryIO, **settings: object) -> None:
        target.write(b"half")
        raise OSError("no space left on device")

    metrics, out = run(tmp_path / "metrics.csv"), tmp_path / "curve.png"
    before = learning_curve(metrics, out).read_bytes()
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="no space"):
        learning_curve(metrics, out)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.png", "metrics.csv"]


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        learning_curves([], tmp_path / "curve.png")
    with pytest.raises(FileNotFoundError):
        learning_curve(tmp_path / "none.csv", tmp_path / "curve.png")
