"""Kill a training run at random moments, resume it, and compare it with one that was left alone.

    python benchmarks/kills.py --out runs/kills --kills 30
    python benchmarks/kills.py --out runs/kills-ppo --kills 30 --algorithm PPO

The run is the quickstart made small: the same parts (world, warm start, rollouts, updates,
validations, checkpoints, curve, pages, records, export) in seconds. A trial starts it in a new
folder and kills it (SIGKILL) once or twice; after each kill ``--ckpt_path last`` goes on. In two
kills of three the moment lies in a part of the run that is drawn first, so that short parts have
their turn; in the third it is drawn from the whole run. Everything is drawn from ``--seed``.

At the end of a trial the weights, the optimizer's state, ``metrics.csv`` (times left out), the
pages and rows of rollouts, the flight recorder's files and the exported policy are compared, bit by
bit, with those of the run that was left alone. Exit status 1 says that something differed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

PARTS = ("between", "warm start", "rollout", "update", "validation", "checkpoint", "export")
_LONG = {"warm start": 1.0, "rollout": 0.1, "update": 0.1, "validation": 0.05}
_LONG |= {"checkpoint": 0.006, "export": 0.03}
"""Seconds behind the beginning of a part in which a kill aimed at it falls."""
_RUN = {
    "trainer": {"max_steps": 12, "val_check_interval": 2, "deterministic": True},
    "model": {
        "sampling": {"max_response_tokens": 40},
        "updates": {"group_size": 4, "num_minibatches": 2, "micro_batch_size": 8},
    },
    "data": {
        "world": {"num_people": 60, "num_train": 60, "num_val": 4, "num_test": 4},
        "batch_size": 4,
    },
}
_CALLBACKS = {
    "LearningCurve": {},
    "RolloutLog": {"every_n_steps": 1},
    "FlightRecorder": {},
    "ExportPolicy": {},
}


@dataclass
class Kill:
    """One kill: where it hit, and what going on had to do again."""

    trial: int
    wanted: str
    part: str
    after_s: float
    learned: int
    kept: int


@dataclass
class Trial:
    """One run with its kills, and what of it differs from the run that was left alone."""

    number: int
    seed: str
    kills: list[Kill] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)


def write_config(folder: Path, algorithm: str) -> Path:
    """Write the small run's config."""
    warm = {
        "class_path": "research_rl.trainers.warmstart.callback.WarmStart",
        "init_args": {
            "folder": "${trainer.default_root_dir}/warmstart",
            "config": {
                "num_people": "${data.world.num_people}",
                "max_searches": "${model.env.max_searches}",
                "steps": 100,
                "batch_size": 16,
                "model": {"hidden_size": 64, "num_layers": 1, "num_heads": 2},
            },
        },
    }
    callbacks: list[dict[str, Any]] = [warm, {"class_path": "RunCheckpoint"}]
    callbacks += [{"class_path": name, "init_args": args} for name, args in _CALLBACKS.items()]
    config: dict[str, Any] = {**_RUN, "trainer": {**_RUN["trainer"], "callbacks": callbacks}}
    if algorithm != "GRPO":
        config["model"] = {**_RUN["model"], "algorithm": {"class_path": algorithm}}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


class Part:
    """What a child is doing, seen from its parent: two numbers in shared memory."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 16)

    def get(self) -> tuple[str, int]:
        """Return the part, and how many iterations the policy has learned from."""
        return PARTS[self._shared[0]], self._shared[1]

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Have a function or method say when it runs."""
        inner: Callable[..., Any] = getattr(owner, name)

        def told(*args: Any, **kwargs: Any) -> Any:
            before, self._shared[0] = self._shared[0], PARTS.index(part)
            try:
                return inner(*args, **kwargs)
            finally:
                self._shared[0] = before
                if part == "update":
                    self._shared[1] = args[0].iteration + 1

        setattr(owner, name, told)


def watch_all(part: Part) -> None:
    """Watch the parts of a run, in this process."""
    from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop

    from research_rl.trainers import callbacks, module
    from research_rl.trainers import collect as collection
    from research_rl.trainers.checkpoint import callback as checkpoint
    from research_rl.trainers.warmstart import callback as warmstart

    part.watch(warmstart, "warm_start", "warm start")
    part.watch(collection.Collector, "__call__", "rollout")
    part.watch(module.ReSearchModule, "_learn", "update")
    part.watch(_EvaluationLoop, "run", "validation")
    part.watch(checkpoint.AtomicCheckpointIO, "save_checkpoint", "checkpoint")
    part.watch(callbacks.ExportPolicy, "on_fit_end", "export")


def start(args: list[str], log: Path, ready: Callable[[], None] | None = None) -> int:
    """Run ``research`` in a child, a fork with all libraries loaded; return its process id.

    Args:
        args: of the command line.
        log: its output goes to the end of it.
        ready: called in the child before the command begins.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if ready is not None:
            ready()
        from research_rl.trainers.cli import dispatch as cli

        sys.argv = ["research", *args]
        cli.main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(child: int) -> int:
    """Return the child's exit status; minus the signal's number where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def moments(rng: random.Random, seconds: float, children: Callable[[], int], part: Part) -> Any:
    """Kill a run at a moment that is drawn; return what was hit, None if it had ended before."""
    wanted = rng.choice(["any", "any", *PARTS[1:]])
    entry, share = rng.randint(1, 3), rng.random()
    child, begun = children(), time.monotonic()
    deadline = begun + (share * seconds if wanted == "any" else 20 * seconds)
    seen, before = 0, ""
    while time.monotonic() < deadline:
        now = part.get()[0]
        if now == wanted and before != wanted:
            seen += 1
            if seen == entry or wanted in ("warm start", "export"):
                time.sleep(share * _LONG[wanted])
                break
        before = now
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.waitstatus_to_exitcode(status):
                raise RuntimeError("the run failed by itself; see its log")
            return None
        time.sleep(0.0005)
    where, learned = part.get()
    os.kill(child, signal.SIGKILL)
    if wait(child) != -signal.SIGKILL:
        return None
    return wanted, where, time.monotonic() - begun, learned


def kept_iterations(run: Path) -> int:
    """Return the iterations that the newest checkpoint has learned from."""
    last = run / "checkpoints" / "last.ckpt"
    return int(torch.load(last, weights_only=True)["iteration"]) if last.is_file() else 0


def outcome(run: Path) -> dict[str, str]:
    """Return a digest of everything that a run left, by its name."""
    found = {}
    for name in ("best.ckpt", "last.ckpt"):
        state = torch.load(run / "checkpoints" / name, weights_only=True)
        found[name] = _digest(_tensors([state["state_dict"], state["optimizer_states"]]))
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if "time/" not in k} for row in csv.DictReader(file)]
    found["metrics.csv"] = _digest([json.dumps(row, sort_keys=True).encode() for row in rows])
    for part in ("rollouts", "records", "policy", "warmstart"):
        for path in sorted((run / part).rglob("*")):
            if path.is_file() and path.name != "warmstart.json":  # how many seconds it took
                found[f"{part}/{path.name}"] = _digest([path.read_bytes()])
    hidden = [p for p in run.rglob("*") if "partial" in p.name]
    return found | {f"left behind: {path.name}": "" for path in hidden}


def _tensors(state: Any) -> Iterator[bytes]:
    if isinstance(state, torch.Tensor):
        yield state.contiguous().numpy().tobytes()
    elif isinstance(state, dict):
        for key in sorted(state, key=str):
            yield str(key).encode()
            yield from _tensors(state[key])
    elif isinstance(state, list | tuple):
        for item in state:
            yield from _tensors(item)
    else:
        yield repr(state).encode()


def _digest(parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def run_trial(
    number: int, seed: int, args: list[str], out: Path, seconds: float, whole: dict[str, str]
) -> Trial:
    """Kill a run once or twice, let it end, and compare it."""
    trial = Trial(number, f"{seed}/{number}")
    rng = random.Random(trial.seed)
    run, log = out / f"trial{number:03d}", out / f"trial{number:03d}.log"
    fit = [*args, "--trainer.default_root_dir", str(run), "--ckpt_path", "last"]
    for _ in range(rng.randint(1, 2)):
        part = Part()
        hit = moments(
            rng, seconds, lambda shared=part: start(fit, log, partial(watch_all, shared)), part
        )
        if hit is not None:
            wanted, where, after, learned = hit
            kept = kept_iterations(run)
            trial.kills.append(Kill(number, wanted, where, round(after, 2), learned, kept))
    if (status := wait(start(fit, log))) != 0:
        trial.differs = [f"the resumed run failed with status {status}"]
        return trial
    mine = outcome(run)
    trial.differs = sorted(k for k in whole.keys() | mine.keys() if whole.get(k) != mine.get(k))
    if not trial.differs:
        shutil.rmtree(run)
        log.unlink()
    return trial


def table(trials: list[Trial]) -> str:
    """Return the table of kills: where they hit, what was done again, what differed."""
    lines = ["| killed in | kills | iterations done again (most) | differs |", "|---|---|---|---|"]
    for part in PARTS:
        hits = [(k, t) for t in trials for k in t.kills if k.part == part]
        if hits:
            again = max(max(0, kill.learned - kill.kept) for kill, _ in hits)
            wrong = sorted({name for _, trial in hits for name in trial.differs})
            lines.append(f"| {part} | {len(hits)} | {again} | {', '.join(wrong) or 'nothing'} |")
    kills = sum(len(trial.kills) for trial in trials)
    bad = sum(bool(trial.differs) for trial in trials)
    lines.append(f"| all | {kills} | | {bad} of {len(trials)} runs differ |")
    return "\n".join(lines)


def main() -> None:
    """Run the trials until there are enough kills, write kills.json and print the table."""
    parser = argparse.ArgumentParser(description="kill and resume training runs")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--kills", type=int, default=30, help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="decides every moment")
    parser.add_argument("--algorithm", default="GRPO", help="GRPO or PPO")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    # loaded once: a child is a fork of this process
    from research_rl.trainers.cli import fit as lightning_cli  # noqa: F401

    torch.set_num_threads(1)
    config = write_config(out, options.algorithm)
    args = ["fit", "--config", "quickstart", "--config", str(config)]
    whole = out / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    begun = time.monotonic()
    log = out / "whole.log"
    fit = [*args, "--trainer.default_root_dir", str(whole)]
    if wait(start(fit, log)) != 0:
        sys.exit(f"the run that is left alone failed; see {log}")
    seconds = time.monotonic() - begun
    expected = outcome(whole)
    trials: list[Trial] = []
    while sum(len(trial.kills) for trial in trials) < options.kills:
        shutil.rmtree(out / f"trial{len(trials):03d}", ignore_errors=True)
        trials.append(run_trial(len(trials), options.seed, args, out, seconds, expected))
        print(json.dumps(asdict(trials[-1])), flush=True)
    report = {
        "algorithm": options.algorithm,
        "seconds_of_a_run": round(seconds, 1),
        "compared": len(expected),
        "trials": [asdict(trial) for trial in trials],
    }
    (out / "kills.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"\n{options.algorithm}, seed {options.seed}, a run of {seconds:.1f} s\n")
    print(table(trials))
    sys.exit(int(any(trial.differs for trial in trials)))


if __name__ == "__main__":
    main()
