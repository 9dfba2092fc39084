"""How time and memory of a training step grow: with context, group size and number of searches.

A small random model (2 layers of width 128, float32) takes a whole step of works that differ in one
thing: the tokens of a rollout (in longer results), the rollouts of a question, the searches of a
rollout. Each work has a process of its own; the first step allocates, the second is counted: CPU
seconds of the rollouts and of the rest, and growth of the resident size.
Beside each figure stands the one that a straight line through the smallest two would have here.

    python benchmarks/growth.py --out docs/performance.png [--json FILE] [--axes context group]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from meters import Meter, Metered, Stages
from planned import Work, make_policy
from steps import our_module, run_ours
from tqdm import tqdm

LENGTHS = (1024, 2048, 4096, 8192, 16384)
AXES: dict[str, dict[int, Work]] = {
    "context": {n: Work(1, 2, 2, 16, n - 128 - 2 * 16) for n in LENGTHS},
    "group": {n: Work(1, n, 2, 16, 128) for n in (4, 8, 16, 32, 64)},
    "searches": {n: Work(1, 4, n + 1, 16, 128) for n in (0, 1, 2, 4, 8, 16)},
}
LABELS = {
    "context": "tokens of a rollout (2 rollouts, 1 search)",
    "group": "rollouts of a question (1 search of 128 tokens)",
    "searches": "searches of a rollout (4 rollouts, 128 tokens each)",
}
FIGURES = {"rollout": "rollouts, CPU s", "learner": "reference and learning, CPU s", "mb": "MB"}


def measure(axis: str, value: int, folder: str) -> dict[str, Any]:
    """One step of a work in a process of its own, behind one that is not counted."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_two_steps, args=(AXES[axis][value], folder, theirs))
    process.start()
    theirs.close()
    try:
        first, second = ours.recv()
    except EOFError:
        raise SystemExit(f"{axis} {value} failed; see above") from None
    process.join()
    rollout = second["stages"]["rollout"]
    return {
        "value": value,
        "rollout": rollout,
        "learner": second["step"] - rollout,
        "mb": max(first["mb"], second["mb"]),
        "sampled": second["sampled"],
        "prefilled": second["prefilled"],
    }


def _two_steps(work: Work, folder: str, answer: Connection) -> None:
    torch.set_num_threads(1)
    stages = Stages()
    meter = Metered(Meter(stages))
    run_ours(our_module(folder, "float32", work, ragged=False, stages=stages), work, 2, meter)
    answer.send(meter.found)


def straight(rows: list[dict[str, Any]], name: str) -> list[float]:
    """What each figure would be on the line through the first two."""
    (x0, y0), (x1, y1) = ((row["value"], row[name]) for row in rows[:2])
    return [y0 + (y1 - y0) * (row["value"] - x0) / (x1 - x0) for row in rows]


def table(axis: str, rows: list[dict[str, Any]]) -> str:
    """Markdown: the figures, in brackets what a straight line would have given."""
    lines = [f"| {LABELS[axis]} | {' | '.join(FIGURES.values())} | sampled | prefilled |"]
    lines.append("|---" * (len(FIGURES) + 3) + "|")
    lined = {name: straight(rows, name) for name in FIGURES}
    for number, row in enumerate(rows):
        shown = []
        for name in FIGURES:
            digits = 0 if name == "mb" else 2
            line = f" ({lined[name][number]:.{digits}f})" if number > 1 else ""
            shown.append(f"{row[name]:.{digits}f}{line}")
        cells = " | ".join([*shown, str(row["sampled"]), str(row["prefilled"])])
        lines.append(f"| {row['value']} | {cells} |")
    return "\n".join(lines)


def draw(report: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """One column for each axis: seconds above, memory below; dashed lines are straight."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (4.2 * len(report), 5.6)
    figure, axes = plt.subplots(2, len(report), figsize=size, squeeze=False, sharex="col")
    for column, (axis, rows) in enumerate(report.items()):
        x = [row["value"] for row in rows]
        for name, label in FIGURES.items():
            place = axes[1 if name == "mb" else 0][column]
            (line,) = place.plot(x, [row[name] for row in rows], "o-", label=label)
            place.plot(x, straight(rows, name), "--", color=line.get_color(), linewidth=1)
        axes[1][column].set_xlabel(LABELS[axis], fontsize=8)
        for place in axes[:, column]:
            place.set_ylim(bottom=0)
            place.grid(alpha=0.3)
    axes[0][0].set_ylabel("CPU seconds of a step")
    axes[1][0].set_ylabel("growth of the resident size, MB")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    """Run the works, draw them, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--axes", nargs="*", choices=AXES, default=list(AXES))
    parser.add_argument("--out", type=Path, default=Path("growth.png"))
    parser.add_argument("--json", help="write the figures here as well")
    args = parser.parse_args()
    report: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy("small")
        policy.model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        for axis in args.axes:
            works = tqdm(AXES[axis], desc=axis)
            report[axis] = [measure(axis, value, folder) for value in works]
    draw(report, args.out)
    for axis, rows in report.items():
        print(f"\n{table(axis, rows)}")
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
