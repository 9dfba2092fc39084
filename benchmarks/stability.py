"""How often training collapses at three times the quickstart's learning rate, rule by rule.

Each run is the quickstart with 8 questions an iteration, two optimizer steps for each batch of
rollouts (with one, LLDS and Search Agent PO are GRPO) and three times its learning rate, from the
warm start of its seed, or from one for all with ``--warm_seed``. A run has learned if its last
validation has an F1 of 0.9, and counts as collapsed if that is below half of its best before.

    python benchmarks/stability.py --out runs/stability
    python benchmarks/stability.py --rules grpo llds --seeds 1 2
    python benchmarks/stability.py --out runs/stability --report-only
    python benchmarks/stability.py --out runs/stability-once --case "answer at once"

``--case`` takes learning rate and warm start of a case of ``collapse.py`` in place of ``--times``.
All rules have their first seed before any has its second. A run that is in its folder already is
not repeated, one that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from collapse import CASES
from quickstart import DONE, quickstart_config, table, train_once

from research_rl.trainers.callbacks.plots import Curves, read_metrics

RULES: dict[str, tuple[str, ...]] = {
    "grpo": ("--config", "algorithm/grpo"),
    "llds": ("--config", "algorithm/llds"),
    "search_agent_po": ("--config", "algorithm/search_agent_po"),
    "grpo, em": ("--config", "algorithm/grpo", "--model.env.reward", "em"),
    "reinforce": ("--config", "algorithm/reinforce"),
}
"""What each rule sets; ``reinforce`` is paid by exact match as its paper pays."""
UNUSED = ("LearningCurve", "HealthMonitor", "RolloutLog", "ExportPolicy", "TensorBoardLogger")
WINDOW = 5
LEARNED = 0.9
MINIBATCHES = 2
Row = dict[str, Any]


def write_changed(folder: Path, root: Path, seed: int, args: argparse.Namespace) -> Path:
    """Write the quickstart as it is run here, with the world and warm starts of ``root``."""
    config = quickstart_config()
    trainer, model = config["trainer"], config["model"]
    case = CASES[args.case] if args.case else {"warm": {}}
    warm_start = str(root / f"warmstart-{args.warm_seed or seed}")
    trainer["max_steps"] = args.steps * MINIBATCHES
    trainer["callbacks"][0]["init_args"]["folder"] = warm_start
    for kind in ("callbacks", "logger"):
        trainer[kind] = [x for x in trainer[kind] if not x["class_path"].endswith(UNUSED)]
    warm = trainer["callbacks"][0]["init_args"]["config"]
    warm.update(case["warm"])
    if args.warm_seed is not None:
        warm["seed"] = args.warm_seed
    model["policy"]["model"] = warm_start
    model["updates"]["num_minibatches"] = MINIBATCHES
    rate = model["optimizer"]["init_args"]
    rate["lr"] = case.get("lr", rate["lr"] * args.times)
    config["data"]["batch_size"] = 8
    config["data"]["world"]["folder"] = str(root / "world")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def folder_of(root: Path, rule: str, seed: int) -> Path:
    """Return where a run stands."""
    return root / rule.replace(", ", "-") / f"seed-{seed}"


def train(root: Path, rule: str, seed: int, args: argparse.Namespace) -> None:
    """Train one run unless it has been done.

    Raises:
        FileExistsError: the folder holds a run of other settings.
    """
    folder = folder_of(root, rule, seed)
    wanted = {"steps": args.steps, "times": args.times, "warm_seed": args.warm_seed}
    wanted |= {"case": args.case} if args.case else {}
    asked = folder / "settings.json"
    if folder.exists() and not (asked.is_file() and json.loads(asked.read_text()) == wanted):
        raise FileExistsError(
            f"{folder} must hold nothing or a run of {wanted}; choose another --out or remove it"
        )
    file = write_changed(folder, root, seed, args)
    asked.write_text(json.dumps(wanted))
    seeds = ("--seed_everything", str(seed), "--ckpt_path", "last")
    train_once(folder, "--config", str(file), *RULES[rule], *seeds)


def has_collapsed(f1: Sequence[float]) -> bool:
    """Whether the last validation is below half of the best one before it.

    Args:
        f1: of each validation.
    """
    return len(f1) > 1 and f1[-1] < 0.5 * max(f1[:-1])


def measured(rule: str, runs: Sequence[Curves]) -> Row:
    """Return the row of a rule over its seeds."""
    curves = [run["val/f1"].values for run in runs]
    return {
        "rule": rule,
        "learned": f"{sum(curve[-1] >= LEARNED for curve in curves)} of {len(runs)}",
        "collapsed": f"{sum(map(has_collapsed, curves))} of {len(runs)}",
        "val F1 at the end, each seed": " ".join(f"{curve[-1]:.2f}" for curve in curves),
        "best val F1, each seed": " ".join(f"{max(curve):.2f}" for curve in curves),
        "form, last five": fmean(fmean(run["train/format"].values[-WINDOW:]) for run in runs),
        "searches, last five": fmean(fmean(run["train/searches"].values[-WINDOW:]) for run in runs),
    }


def main() -> None:
    """Train, then print the table of what is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/stability"))
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=30, help="iterations of a run")
    parser.add_argument("--times", type=float, default=3.0, help="the quickstart's learning rate")
    parser.add_argument("--case", choices=list(CASES), help="of collapse.py, in place of --times")
    parser.add_argument("--warm_seed", type=int, help="one warm start for all")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root = args.out.resolve()
    for seed in () if args.report_only else args.seeds:
        for rule in args.rules:
            train(root, rule, seed, args)
    rows = []
    for rule in args.rules:
        places = [folder_of(root, rule, seed) for seed in args.seeds]
        runs = [read_metrics(p / "metrics.csv") for p in places if (p / DONE).is_file()]
        if runs:
            rows.append(measured(rule, runs))
    if not rows:
        raise SystemExit(f"{root} must hold a run that is done, got none; leave out --report-only")
    rate = f"{args.times:g} times the quickstart's learning rate"
    print(f"{args.steps} iterations, {args.case or rate}\n")
    print(table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
