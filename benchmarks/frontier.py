"""Accuracy against searches: constant prices of a search, and the price that the group decides.

Each point is one run of the quickstart with one price and one seed; its last policy answers the
test people greedily. A constant price is ``model.env.search_cost``; the other is ``model.price``.

    python benchmarks/frontier.py --out runs/frontier
    python benchmarks/frontier.py --points free group-0.1 --seeds 3
    python benchmarks/frontier.py --out runs/frontier --report-only

A run that is already in its folder is not repeated, and one that was interrupted goes on. Every
point is measured once, into ``point.json`` of its run; ``frontier.png`` shows those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from quickstart import DONE, TRAINED_HOPS, Exam, load, table, train_once

FREE = ("--model.price", "null")
PRICED = ("--model.price", "SearchPrice", "--model.price.coef")
CONSTANT = (*FREE, "--model.env.search_cost")
POINTS: dict[str, tuple[str, ...]] = {
    "free": FREE,
    **{f"constant-{c}": (*CONSTANT, c) for c in ("0.02", "0.05", "0.1", "0.2")},
    **{f"group-{c}": (*PRICED, c) for c in ("0.05", "0.1", "0.3")},
}
"""The prices, each by the options that set it; the quickstart has one of its own, ``group-0.1``."""
COLOURS = {"free": "#33383d", "constant": "#d55e00", "group": "#0072b2"}
MEASURED = "point.json"
Row = dict[str, Any]


def point_folder(out: Path, name: str, seed: int) -> Path:
    """Return where the run of a point stands."""
    return out / name / f"seed-{seed}"


def make_point(out: Path, name: str, seed: int, questions: int) -> None:
    """Train and measure one point, as far as that has not been done."""
    folder = point_folder(out, name, seed)
    config = ("--config", "quickstart", "--seed_everything", str(seed), "--ckpt_path", "last")
    minutes = train_once(folder, *config, *POINTS[name])
    if (folder / MEASURED).is_file():
        return
    played = Exam(folder, 0, questions).search(load(folder / "policy"), greedy=True)
    kept: Row = {}
    for hops in TRAINED_HOPS:
        for measure in ("f1", "searches", "format"):
            kept[f"{measure}_{hops}hop"] = played[f"{measure}_{hops}hop"]
    for measure in ("f1", "searches"):
        kept[measure] = sum(kept[f"{measure}_{h}hop"] for h in TRAINED_HOPS) / len(TRAINED_HOPS)
    row = {"price": name, "seed": seed, **kept, "minutes": minutes}
    (folder / MEASURED).write_text(json.dumps(row))


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draw F1 over searches, a point a run; the words beside it name the prices of its place."""
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots()
    marks = defaultdict[tuple[float, float], list[str]](list)
    for kind, colour in COLOURS.items():
        ours = [row for row in rows if row["price"].partition("-")[0] == kind]
        where = [row["searches"] for row in ours], [row["f1"] for row in ours]
        axes.plot(*where, "o", color=colour, label=kind, alpha=0.8)
        for row in ours:
            place = (round(row["searches"], 1), round(row["f1"], 1))
            marks[place].append(row["price"].replace("-", " "))
    for place, names in marks.items():  # points that lie on each other share their words
        text = "\n".join(f"{name} x {n}" if n > 1 else name for name, n in Counter(names).items())
        axes.annotate(
            text, place, xytext=(-8, -6), textcoords="offset points", ha="right", va="top", size=7
        )
    axes.axvline(sum(TRAINED_HOPS) / len(TRAINED_HOPS), color="#9aa0a6", linestyle=":")
    axes.set_xlabel("searches a question, test people, 1 and 2 hops; dotted: as many as hops")
    axes.set_ylabel("F1")
    axes.set_ylim(-0.03, 1.05)
    axes.margins(x=0.25)
    axes.grid(color="#e3e5e7", linewidth=0.6)
    axes.legend(frameon=False, title="price of a search", loc="lower left")
    figure.savefig(file)


def main() -> None:
    """Train, measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--points", nargs="+", choices=list(POINTS), default=list(POINTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[3])
    parser.add_argument("--questions", type=int, default=200, help="of each number of hops")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    todo = [(name, seed) for seed in args.seeds for name in args.points]
    for name, seed in () if args.report_only else todo:
        make_point(args.out, name, seed, args.questions)
    folders = [point_folder(args.out, name, seed) for name, seed in todo]
    there = [f for f in folders if (f / DONE).is_file() and (f / MEASURED).is_file()]
    rows = [json.loads((folder / MEASURED).read_text()) for folder in there]
    if not rows:
        raise SystemExit(f"{args.out} must hold a point that is done; leave out --report-only")
    print(f"Test people, {args.questions} questions a number of hops, greedy\n")
    print(table(rows, list(rows[0])))
    draw(rows, args.out / "frontier.png")
    print(f"\npicture: {args.out / 'frontier.png'}")


if __name__ == "__main__":
    main()
