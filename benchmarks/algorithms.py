"""Every algorithm on the built-in world, from the same warm start: a table and one picture.

Each run is ``research fit --config quickstart --config algorithm/NAME`` with the warm start of its
seed, so that runs of a seed differ by the algorithm alone. Two optimizer steps an iteration, since
with one there is no ratio, and GSPO, GMPO and SAPO are the same rule.

    python benchmarks/algorithms.py --out runs/algorithms
    python benchmarks/algorithms.py --algorithms grpo ppo --seeds 1 --steps 20

A run that is in its folder already is not repeated, one that was interrupted goes on. Figures are
those of validation, greedy, on people that training never asks about.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from research_rl.trainers.plots import Metrics, read_metrics

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "grpo": (),
    "dr_grpo": (),
    "dapo": (),
    "rloo": (),
    "reinforce_pp": (),
    "reinforce_pp_baseline": (),
    "gspo": (),
    "cispo": (),
    "gmpo": (),
    "sapo": (),
    "ppo": (),
    "igpo": (),
    "gigpo": (),
}
"""Each shipped config, and what is set beside it for a model so small."""
REACHED = 0.9
COLUMNS = 4
OWN, MEAN, OTHER = "#56b4e9", "#0072b2", "#9aa0a6"
Row = dict[str, Any]


def write_config(folder: Path, root: Path, seed: int, steps: int, minibatches: int) -> Path:
    """Write the quickstart with the world of ``root`` and the warm start of a seed."""
    text = files("research_rl.configs").joinpath("quickstart.yaml").read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load(text)
    warm_start = str(root / f"warmstart-{seed}")
    config["seed_everything"] = seed
    config["trainer"]["default_root_dir"] = str(folder)
    config["trainer"]["max_steps"] = steps * minibatches
    config["trainer"]["callbacks"][0]["init_args"]["folder"] = warm_start
    config["model"]["policy"]["model"] = warm_start
    config["model"]["updates"]["num_minibatches"] = minibatches
    config["data"]["world"]["folder"] = str(root / "world")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def train(name: str, root: Path, seed: int, steps: int, minibatches: int) -> Path:
    """Train unless it has been done, and return the folder of the run.

    Raises:
        RuntimeError: the run failed; its folder has the log.
    """
    folder = root / name / f"seed-{seed}"
    done = folder / "done.json"
    wanted = {"steps": steps, "minibatches": minibatches}
    if done.is_file() and wanted.items() <= json.loads(done.read_text()).items():
        return folder
    config = write_config(folder, root, seed, steps, minibatches)
    command = [sys.executable, "-m", "research_rl.trainers.cli", "fit", "--config", str(config)]
    command += ["--config", f"algorithm/{name}", *ALGORITHMS[name], "--ckpt_path", "last"]
    start = time.perf_counter()
    with (folder / "log.txt").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise RuntimeError(f"{name}, seed {seed}, must end well, got status {code}; see {log.name}")
    done.write_text(json.dumps({**wanted, "seconds": time.perf_counter() - start}))
    return folder


def measure(metrics: Metrics) -> Row:
    """Return a run's first and last validation, and when it first reached ``REACHED``."""
    f1 = metrics["val/f1"]
    reached = [step for step, value in zip(*f1, strict=True) if value >= REACHED]
    spent = sum(sum(metrics[f"time/{part}_s"].values) for part in ("rollout", "update"))
    found: Row = {"start": f1.values[0], "end": f1.values[-1], "minutes": spent / 60}
    for hops in (1, 2):
        found[f"{hops} hop"] = metrics[f"val/f1_{hops}hop"].values[-1]
        found[f"searches {hops} hop"] = metrics[f"val/searches_{hops}hop"].values[-1]
    return {**found, "reached": reached[0] if reached else None}


def summarize(name: str, runs: Sequence[Row]) -> Row:
    """Return the row of an algorithm: means over its seeds, and each seed's end."""
    steps = [run["reached"] for run in runs]
    keys = ("start", "end", "1 hop", "2 hop", "searches 1 hop", "searches 2 hop", "minutes")
    return {
        "algorithm": name,
        **{key: fmean(run[key] for run in runs) for key in keys},
        "each seed": " ".join(f"{run['end']:.2f}" for run in runs),
        f"iterations to {REACHED}": " ".join("never" if s is None else str(s) for s in steps),
    }


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = (f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: dict[str, list[Metrics]], file: Path) -> None:
    """Draw validation F1 over the iterations, a panel an algorithm, the first one in grey too."""
    height = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(10.5, 2.1 * height), dpi=150, layout="constrained", facecolor="white")
    panels = figure.subplots(height, COLUMNS, sharex=True, sharey=True, squeeze=False).flat
    first = next(iter(found))
    for axes, (name, runs) in zip(panels, found.items(), strict=False):
        if name != first:
            _mean(axes, found[first], OTHER, 1.2)
        for run in runs:
            axes.plot(*run["val/f1"], color=OWN, linewidth=0.8)
        _mean(axes, runs, MEAN, 1.8)
        axes.set_title(name, fontsize=9)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(color="#e3e5e7", linewidth=0.6)
    for axes in list(panels):
        axes.set_axis_off()
    figure.supxlabel(
        f"iterations; validation F1, greedy, 1 and 2 hops; thin: a seed, grey: {first}", fontsize=8
    )
    figure.savefig(file)


def _mean(axes: Axes, runs: Sequence[Metrics], colour: str, width: float) -> None:
    """Draw the mean of the runs at the steps that all of them have."""
    curves = [dict(zip(*run["val/f1"], strict=True)) for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = [fmean(curve[step] for curve in curves) for step in steps]
    axes.plot(steps, values, color=colour, linewidth=width)


def main() -> None:
    """Train, measure, print and draw; failures are told at the end and lose nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=45, help="iterations of a run")
    parser.add_argument("--minibatches", type=int, default=2, help="optimizer steps an iteration")
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root = args.out.resolve()
    found: dict[str, list[Metrics]] = {}
    failed: list[str] = []
    todo = [(name, seed) for seed in args.seeds for name in args.algorithms]
    for name, seed in (progress := tqdm(todo, unit="run")):
        progress.set_postfix_str(f"{name}, seed {seed}")
        try:
            folder = train(name, root, seed, args.steps, args.minibatches)
        except RuntimeError as error:
            failed.append(str(error))
            continue
        found.setdefault(name, []).append(read_metrics(folder / "metrics.csv"))
    ordered = {name: found[name] for name in args.algorithms if name in found}
    rows = [summarize(name, [measure(run) for run in runs]) for name, runs in ordered.items()]
    if rows:
        print(table(rows))
        draw(ordered, root / "algorithms.png")
        print(f"\ncurves: {root / 'algorithms.png'}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
