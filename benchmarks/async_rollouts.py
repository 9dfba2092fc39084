"""What sampling one step ahead costs in learning: the quickstart made small, in turn and ahead.

    python benchmarks/async_rollouts.py --out runs/ahead --iterations 40

Both runs start from the same warm start in the same world with the same seed and see the same
questions. One samples each iteration with the newest weights; the other (``engine/ahead``) with
those of the iteration before, beside the update, under TIS (importance weights truncated at 2). A
third samples in turn under TIS, which tells what the correction itself does. Greedy F1 and reward
on held-out people are printed for each validation, and the seconds of an iteration.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

_MADE_ONCE = ("warmstart", "world")
_ARMS: dict[str, dict[str, Any]] = {
    "in turn": {},
    "in turn, TIS": {"algorithm": {"init_args": {"correction": {"kind": "truncate"}}}},
    "ahead, TIS": {
        "algorithm": {"init_args": {"correction": {"kind": "truncate"}}},
        "updates": {"async_rollouts": 1},
    },
}


def write_config(folder: Path, iterations: int, seed: int, model: dict[str, Any]) -> Path:
    """Write the small run's config: 64 rollouts an iteration, everything else the quickstart's."""
    warm = {
        "class_path": "research_rl.trainers.warmstart.callback.WarmStart",
        "init_args": {
            "folder": "${trainer.default_root_dir}/warmstart",
            "config": {
                "num_people": "${data.world.num_people}",
                "max_searches": "${model.env.max_searches}",
                "seed": 1,
            },
        },
    }
    config = {
        "seed_everything": seed,
        "trainer": {
            "default_root_dir": str(folder),
            "max_steps": iterations,
            "val_check_interval": max(1, iterations // 4),
            "callbacks": [warm, {"class_path": "RunCheckpoint"}, {"class_path": "FlightRecorder"}],
            "enable_progress_bar": False,
            "logger": {
                "class_path": "CSVLogger",
                "init_args": {
                    "save_dir": str(folder),
                    "name": "",
                    "version": "",
                    "flush_logs_every_n_steps": 1,
                },
            },
        },
        "model": {**model, "updates": {"group_size": 8, **model.get("updates", {})}},
        "data": {"batch_size": 8, "world": {"num_val": 40}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def start_fit(folder: Path, config: Path, first: Path | None = None) -> subprocess.Popen[bytes]:
    """Begin a run; what is made once (warm start and world) is taken from the first run."""
    for name in _MADE_ONCE if first is not None else ():
        assert first is not None
        shutil.copytree(first / name, folder / name, dirs_exist_ok=True)
    command = [sys.executable, "-m", "research_rl.trainers.cli", "fit"]
    command += ["--config", "quickstart", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def fit(folder: Path, config: Path, first: Path | None = None) -> None:
    """Run to the end, unless it has been."""
    if (folder / "done").is_file():
        return
    if start_fit(folder, config, first).wait():
        raise RuntimeError(f"the run failed; see {folder / 'log.txt'}")
    (folder / "done").touch()


def rows(folder: Path) -> list[dict[str, float]]:
    """Return what ``metrics.csv`` holds so far."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def main() -> None:
    """Run the arms that have not been run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    args = parser.parse_args()
    first: Path | None = None
    for seed in args.seeds:
        for name, model in _ARMS.items():
            folder = (args.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}").absolute()
            fit(folder, write_config(folder, args.iterations, seed, model), first)
            first = first or folder
            print(f"\n{name}, seed {seed}")
            print_run(rows(folder))


def print_run(metrics: list[dict[str, float]]) -> None:
    """Print a line for each validation, and the means over the iterations."""
    for row in metrics:
        if "val/f1" in row:
            step, f1, reward = row["step"], row["val/f1"], row["val/reward"]
            print(f"  iteration {step:3.0f}  val F1 {f1:.3f}  reward {reward:.3f}")
    learned = [row for row in metrics if "train/loss" in row]
    last = learned[-10:]
    told = {
        "train reward, last 10": sum(r["train/reward"] for r in last) / len(last),
        "s waited for rollouts": sum(r["time/rollout_s"] for r in learned) / len(learned),
        "s of update": sum(r["time/update_s"] for r in learned) / len(learned),
        "mismatch_k3": sum(r["train/mismatch_k3"] for r in learned) / len(learned),
    }
    print("  " + "  ".join(f"{name} {value:.4f}" for name, value in told.items()))


if __name__ == "__main__":
    main()
