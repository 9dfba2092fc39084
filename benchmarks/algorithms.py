"""Every algorithm on the built-in world, from the same warm start: a table and one picture.

Each run is ``research fit --config quickstart --config algorithm/NAME`` with the warm start of its
seed, so that runs of a seed differ by the algorithm alone. Two optimizer steps an iteration, since
with one there is no ratio, and GSPO, GMPO and SAPO are the same rule. What ``ALGORITHMS`` sets
beside a config is all that was tuned for a model so small.

    python benchmarks/algorithms.py --out runs/algorithms
    python benchmarks/algorithms.py --algorithms grpo ppo --seeds 1 --steps 20
    python benchmarks/algorithms.py --out runs/algorithms --report-only --docs docs

All rules have their first seed before any has its second. A run that is in its folder already is
not repeated, one that was interrupted goes on; ``--report-only`` trains nothing and shows what is
there, also while another process trains. ``--docs`` puts table and picture into the documentation.

Validation is greedy, on people that training never asks about; training F1 is that of the sampled
rollouts, on questions that are new in every iteration.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from research_rl.trainers.callbacks.plots import Curves, read_metrics

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "grpo": (),
    "dr_grpo": (),
    "dapo": (),
    "rloo": (),
    "reinforce_pp": (),
    "reinforce_pp_baseline": (),
    # at a learning rate so high, ratios of rollouts leave 1 by 0.01: the paper's clip of 3e-4 would
    # leave the second optimizer step of an iteration next to nothing
    "gspo": ("--model.algorithm.clip_low=0.03", "--model.algorithm.clip_high=0.04"),
    "cispo": (),
    "gmpo": (),
    "sapo": (),
    "ppo": (),
    "igpo": (),
    # wrong answers differ in form and length alone: a discount below 1 would pay the shorter ones
    "gigpo": ("--model.credit.init_args.discount=1.0",),
    "counterfactual": (),
}
"""Each shipped config, and what is set beside it for a model so small."""
SILENT = ("TensorBoardLogger",)
UNUSED = ("LearningCurve", "HealthMonitor", "RolloutLog", "ExportPolicy")
"""Loggers and callbacks of the quickstart that cost time and are not looked at here."""
REACHED = 0.9
LAST = 5
COLUMNS = 4
OWN, MEAN, OTHER, SAMPLED = "#56b4e9", "#0072b2", "#9aa0a6", "#d55e00"
BEGIN, END = "<!-- benchmarks/algorithms.py -->", "<!-- end -->"
"""Between them stands the table in docs/algorithms.md."""
Row = dict[str, Any]


def quickstart() -> dict[str, Any]:
    """Return the shipped quickstart."""
    text = files("research_rl.configs").joinpath("quickstart.yaml").read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def write_config(folder: Path, root: Path, seed: int, wanted: Row) -> Path:
    """Write the quickstart with the world of ``root`` and the warm start of a seed."""
    config = quickstart()
    warm_start = str(root / f"warmstart-{seed}")
    trainer = config["trainer"]
    config["seed_everything"] = seed
    trainer["default_root_dir"] = str(folder)
    trainer["max_steps"] = wanted["steps"] * wanted["minibatches"]
    trainer["val_check_interval"] = 3
    trainer["callbacks"][0]["init_args"]["folder"] = warm_start
    for kind, left_out in (("callbacks", UNUSED), ("logger", SILENT)):
        trainer[kind] = [x for x in trainer[kind] if not x["class_path"].endswith(left_out)]
    config["model"]["policy"]["model"] = warm_start
    config["model"]["updates"]["num_minibatches"] = wanted["minibatches"]
    config["data"]["batch_size"] = wanted["questions"]
    config["data"]["world"]["folder"] = str(root / "world")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def run_folder(root: Path, name: str, seed: int) -> Path:
    """Return where a run stands."""
    return root / name / f"seed-{seed}"


def is_done(folder: Path, wanted: Row) -> bool:
    """Whether the run is there as a whole, with these settings."""
    done = folder / "done.json"
    return done.is_file() and wanted.items() <= json.loads(done.read_text()).items()


def settings(name: str, args: argparse.Namespace) -> Row:
    """Return what a run must have been made with to count."""
    numbers = {key: getattr(args, key) for key in ("steps", "questions", "minibatches")}
    return {**numbers, "set": list(ALGORITHMS[name])}


def train(name: str, root: Path, seed: int, wanted: Row) -> None:
    """Train unless it has been done.

    Raises:
        FileExistsError: the folder holds a run of other settings.
        RuntimeError: the run failed; its folder has the log.
    """
    folder = run_folder(root, name, seed)
    if is_done(folder, wanted):
        return
    asked = folder / "settings.json"
    if folder.exists() and not (asked.is_file() and json.loads(asked.read_text()) == wanted):
        raise FileExistsError(  # its checkpoint must not be taken for this run's
            f"{folder} must hold nothing or a run of the settings {wanted}, got other ones; choose "
            "another --out or remove it"
        )
    config = write_config(folder, root, seed, wanted)
    asked.write_text(json.dumps(wanted))
    command = [sys.executable, "-m", "research_rl.trainers.cli", "fit", "--config", str(config)]
    command += ["--config", f"algorithm/{name}", *wanted["set"], "--ckpt_path", "last"]
    with (folder / "log.txt").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise RuntimeError(f"{name}, seed {seed}, must end well, got status {code}; see {log.name}")
    (folder / "done.json").write_text(json.dumps(wanted))


def found_runs(root: Path, args: argparse.Namespace) -> dict[str, list[Curves]]:
    """Return the metrics of every run that is done, by algorithm."""
    found: dict[str, list[Curves]] = {}
    for name in args.algorithms:
        for seed in args.seeds:
            folder = run_folder(root, name, seed)
            if is_done(folder, settings(name, args)):
                found.setdefault(name, []).append(read_metrics(folder / "metrics.csv"))
    return found


def measure(metrics: Curves) -> Row:
    """Return how a run ended, and when it first reached ``REACHED``."""
    f1, sampled = metrics["val/f1"], metrics["train/f1"].values
    reached = [step for step, value in zip(*f1, strict=True) if value >= REACHED]
    found: Row = {"start": f1.values[0], "end": f1.values[-1]}
    for hops in (1, 2):
        found[f"{hops} hop"] = metrics[f"val/f1_{hops}hop"].values[-1]
        found[f"searches {hops} hop"] = metrics[f"val/searches_{hops}hop"].values[-1]
    found["sampled"] = fmean(sampled[-LAST:])
    found["all"] = fmean(sampled)
    if "train/sampled_rollouts" in metrics:  # where groups are replaced
        found["rollouts"] = fmean(metrics["train/sampled_rollouts"].values)
    return {**found, "reached": reached[0] if reached else None}


def summarize(name: str, runs: Sequence[Row]) -> Row:
    """Return the row of an algorithm: means over its seeds, and each seed's end."""
    means = {key: fmean(run[key] for run in runs) for key in runs[0] if key != "reached"}
    return {
        "algorithm": f"`{name}`",
        "val F1": means["end"],
        "each seed": " ".join(f"{run['end']:.2f}" for run in runs),
        "1 hop": means["1 hop"],
        "2 hops": means["2 hop"],
        "searches": f"{means['searches 1 hop']:.2f}, {means['searches 2 hop']:.2f}",
        f"iterations to {REACHED}": " ".join(
            "never" if run["reached"] is None else str(run["reached"]) for run in runs
        ),
        f"sampled F1, last {LAST}": means["sampled"],
        "sampled F1, whole run": means["all"],
        "rollouts an iteration, where some are replaced": f"{means['rollouts']:.0f}"
        if "rollouts" in means
        else "",
        "set beside the config": " ".join(f"`{option}`" for option in ALGORITHMS[name]),
    }


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0])]
    for row in rows:
        cells = (f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: dict[str, list[Curves]], file: Path) -> None:
    """Draw F1 over the iterations, a panel an algorithm, the first one in grey too."""
    height = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(10.5, 2.1 * height), dpi=150, layout="constrained", facecolor="white")
    grid = figure.subplots(height, COLUMNS, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    first = next(iter(found))
    for axes, (name, runs) in zip(panels, found.items(), strict=False):
        if name != first:
            _mean(axes, found[first], "val/f1", OTHER, 1.2)
        for run in runs:
            axes.plot(*run["val/f1"], color=OWN, linewidth=0.8)
        _mean(axes, runs, "val/f1", MEAN, 1.8)
        _mean(axes, runs, "train/f1", SAMPLED, 1.0)
        axes.set_title(f"{name}, {len(runs)} seed{'s' * (len(runs) > 1)}", fontsize=9)
        axes.set_ylim(-0.03, 1.03)
        axes.grid(color="#e3e5e7", linewidth=0.6)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    figure.supxlabel(
        "iterations; blue: validation F1, greedy, 1 and 2 hops, thin: a seed; orange: F1 of the "
        f"sampled rollouts; grey: validation of {first}",
        fontsize=8,
    )
    figure.savefig(file)


def _mean(axes: Axes, runs: Sequence[Curves], key: str, colour: str, width: float) -> None:
    """Draw the mean of the runs at the steps that all of them have."""
    curves = [dict(zip(*run[key], strict=True)) for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = [fmean(curve[step] for curve in curves) for step in steps]
    axes.plot(steps, values, color=colour, linewidth=width)


def report(root: Path, args: argparse.Namespace) -> None:
    """Print the table of all runs that are done, and draw them."""
    found = found_runs(root, args)
    if not found:
        print(f"no run of {args.steps} iterations is done in {root}")
        return
    rows = [summarize(name, [measure(run) for run in runs]) for name, runs in found.items()]
    text = table(rows)
    print(text)
    draw(found, root / "algorithms.png")
    print(f"\ncurves: {root / 'algorithms.png'}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
    if args.docs:
        page = args.docs / "algorithms.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(
            f"{before}{BEGIN}\n{text}\n\n![F1 over the iterations](algorithms.png)\n{END}{after}",
            encoding="utf-8",
        )
        draw(found, args.docs / "algorithms.png")


def parse_args() -> argparse.Namespace:
    """Return the options, docs checked before hours of training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=30, help="iterations of a run")
    parser.add_argument("--questions", type=int, default=8, help="groups of 16 in an iteration")
    parser.add_argument("--minibatches", type=int, default=2, help="optimizer steps an iteration")
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--docs", type=Path, help="folder whose algorithms.md gets the table")
    args = parser.parse_args()
    if args.docs:
        page = args.docs / "algorithms.md"
        if not page.is_file() or not 0 <= (text := page.read_text()).find(BEGIN) < text.find(END):
            parser.error(f"{page} must hold {BEGIN} and, behind it, {END}")
    return args


def main() -> None:
    """Train, measure, print and draw; failures are told at the end and lose nothing."""
    args = parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root = args.out.resolve()
    failed: list[str] = []
    todo = [(name, seed) for seed in args.seeds for name in args.algorithms]
    for name, seed in (progress := tqdm([] if args.report_only else todo, unit="run")):
        progress.set_postfix_str(f"{name}, seed {seed}")
        try:
            train(name, root, seed, settings(name, args))
        except RuntimeError as error:
            failed.append(str(error))
    report(root, args)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
