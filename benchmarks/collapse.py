"""Runs that collapse, with and without a CollapseGuard: a table, and a picture of both.

Three cases in the quickstart's world, each run twice, without a guard and with one that may act:

- ``too fast``: the quickstart with ten times its learning rate; the form of the answers breaks;
- ``answer at once``: a weak warm start without good demonstrations, whose policy is paid for the
  form long before any answer is right, so that it stops searching;
- ``healthy``: the quickstart as it is, to count false alarms.

    python benchmarks/collapse.py --out runs/collapse
    python benchmarks/collapse.py --replay runs/algorithms

A run that is already in its folder is not repeated. ``--replay`` trains nothing: it holds the rules
to the ``metrics.csv`` of every run below a folder and says which of them would have been warned.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from quickstart import train_once

from research_rl.trainers.callbacks.plots import Curve, Curves, read_metrics
from research_rl.trainers.health.guard import would_have_warned
from research_rl.trainers.health.rules import RULES

CASES: Mapping[str, Mapping[str, Any]] = {
    "too fast": {"lr": 0.01, "warm": {}},
    "answer at once": {"lr": 0.001, "warm": {"good_share": 0.0, "steps": 120}},
    "healthy": {"lr": 0.001, "warm": {}},
}
SHOWN = ("train/reward", "train/format", "train/searches", "train/entropy")
NO_CURVE = Curve([], [])


def config(case: str, guarded: bool, folder: Path, out: Path, seed: int) -> dict[str, Any]:
    """Return what a run changes of the quickstart."""
    settings = CASES[case]
    warm = {"num_people": 600, "world_seed": 0, "max_searches": 4, "good_share": 0.2, "steps": 450}
    warm = {**warm, "seed": seed, **settings["warm"]}
    model = str(out / f"warmstart-{warm['good_share']:g}-{warm['steps']}-{seed}")
    callbacks: list[dict[str, Any]] = [
        {
            "class_path": "research_rl.trainers.warmstart.callback.WarmStart",
            "init_args": {"folder": model, "config": warm},
        },
        {"class_path": "RunProgressBar"},
        {"class_path": "research_rl.trainers.health.monitor.HealthMonitor"},
    ]
    if guarded:
        options = {"roll_back": True, "lr_factor": 0.3, "kl_factor": 3.0, "snapshot_every": 2}
        guard = {
            "class_path": "research_rl.trainers.health.guard.CollapseGuard",
            "init_args": options,
        }
        callbacks.append(guard)
    return {
        "trainer": {"default_root_dir": str(folder), "callbacks": callbacks},
        "model": {
            "policy": {"model": model},
            "optimizer": {
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": settings["lr"], "betas": [0.9, 0.99], "weight_decay": 0.0},
            },
        },
        "data": {"world": {"folder": str(out / "world")}},
    }


def fit(case: str, guarded: bool, out: Path, steps: int, seed: int) -> Path:
    """Run one case unless it has been run, and return its folder."""
    folder = out / f"{case.replace(' ', '-')}-{'guarded' if guarded else 'alone'}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "changes.json"  # JSON is YAML
    file.write_text(json.dumps(config(case, guarded, folder, out, seed)))
    seeds = ("--seed_everything", str(seed), "--trainer.max_steps", str(steps))
    train_once(folder, "--config", "quickstart", "--config", str(file), *seeds)
    return folder


def last(metrics: Curves, name: str, count: int = 5) -> float:
    """Return the mean of the last values of a metric."""
    values = metrics.get(name, NO_CURVE).values[-count:]
    return sum(values) / len(values) if values else float("nan")


def row(case: str, guarded: bool, folder: Path) -> dict[str, Any]:
    """Return what is left of a run."""
    metrics = read_metrics(folder / "metrics.csv")
    journal = folder / "guard.jsonl"
    events = [json.loads(x) for x in journal.read_text().splitlines()] if journal.exists() else []
    acted = [str(event["step"]) for event in events if event["kind"] == "act"]
    health = sum(metrics["time/health_s"].values)
    spent = sum(metrics["time/rollout_s"].values) + sum(metrics["time/update_s"].values)
    validation = metrics.get("val/f1", NO_CURVE).values
    return {
        "case": case,
        "guard": "yes" if guarded else "no",
        **{name.removeprefix("train/"): f"{last(metrics, name):.2f}" for name in SHOWN},
        "val F1 at the end": f"{validation[-1]:.2f}",
        "best": f"{max(validation):.2f}",
        "warned at": str(events[0]["step"]) if events else "",
        "acted at": ", ".join(acted),
        "lr left": f"{metrics['train/lr'].values[-1]:.2g}",
        "health, share of time": f"{health / spent:.2%}",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join(lines + [f"| {' | '.join(r[c] for c in columns)} |" for r in rows])


def picture(folders: Mapping[tuple[str, bool], Path], target: Path) -> None:
    """Draw reward, format, searches and validation F1 of each case, alone and guarded."""
    cases = list(dict.fromkeys(case for case, _ in folders))
    names = ("train/reward", "train/format", "train/searches", "val/f1")
    size = (3.3 * len(names), 2.3 * len(cases))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(len(cases), len(names), squeeze=False)
    for (case, guarded), folder in folders.items():
        metrics = read_metrics(folder / "metrics.csv")
        for axes, name in zip(grid[cases.index(case)], names, strict=True):
            label, colour = ("guarded", "#0072b2") if guarded else ("alone", "#d55e00")
            axes.plot(*metrics.get(name, NO_CURVE), color=colour, label=label, linewidth=1.4)
            axes.set_title(f"{case}: {name}", fontsize=9)
            axes.legend(frameon=False, fontsize=8)
            axes.grid(axis="y", color="#e3e5e7")
    figure.savefig(target)


def replayed(folder: Path, file: Path) -> dict[str, str]:
    """Return what a guard without arguments would have said of a recorded run."""
    metrics = read_metrics(file)
    warned = would_have_warned(metrics)
    named = (f"{step}: {reason.split(',')[0]}" for step, reasons in warned for reason in reasons)
    validation = metrics.get("val/f1", NO_CURVE).values
    return {
        "run": str(file.parent.relative_to(folder)),
        "steps": str(len(metrics["train/reward"].steps)),
        "rules judged": f"{sum(rule.metric in metrics for rule in RULES)} of {len(RULES)}",
        "reward, last five": f"{last(metrics, 'train/reward'):.2f}",
        "val F1, best": f"{max(validation):.2f}" if validation else "",
        "warned": "; ".join(named),
    }


def false_alarms(folder: Path, at_least: int) -> None:
    """Print what the rules would have said of every run below a folder."""
    files = sorted(folder.rglob("metrics.csv"))
    lengths = {file: len(read_metrics(file).get("train/reward", NO_CURVE).steps) for file in files}
    rows = [replayed(folder, file) for file in files if lengths[file] >= at_least]
    if not rows:
        raise SystemExit(
            f"{folder} must hold a metrics.csv of at least {at_least} steps somewhere, got none; "
            "name a folder of runs, or lower --at-least"
        )
    warned = sum(bool(found["warned"]) for found in rows)
    print(f"{warned} of {len(rows)} runs would have been warned\n\n{table(rows)}")


def main() -> None:
    """Run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/collapse"))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guards", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--replay", type=Path, help="a folder of recorded runs; trains nothing")
    parser.add_argument("--at-least", type=int, default=10, help="steps of a run that is replayed")
    args = parser.parse_args()
    if args.replay:
        false_alarms(args.replay, args.at_least)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    out = args.out.resolve()
    folders = {
        (case, guarded): fit(case, guarded, out, args.steps, args.seed)
        for case in args.cases
        for guarded in (name == "yes" for name in args.guards)
    }
    rows = [row(case, guarded, folder) for (case, guarded), folder in folders.items()]
    print(f"{args.steps} steps, seed {args.seed}; means of the last five steps\n\n{table(rows)}")
    picture(folders, out / "collapse.png")
    print(f"\npicture: {out / 'collapse.png'}; the guard's journals: guard.jsonl in its runs")


if __name__ == "__main__":
    main()
