"""The quickstart, measured: several seeds, then the test people, with controls, as a table.

Each seed runs ``research fit --config quickstart``. Its last policy then answers questions about
the test people, greedily and sampled, by number of hops. Beside it stand

- the warm-started model, before any reinforcement;
- closed book: the trained weights, made to answer at once;
- naive RAG: the trained weights, given the result of one search with the question itself;
- GRPO from random weights, for a few steps.

    python benchmarks/quickstart.py --seeds 1 2 3 --out runs/bench

A run that is already in its folder is not repeated. ``--world_seed`` takes another world, and
``--recipe three_hops`` the config of that name over the quickstart.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import yaml

from research_rl.agents import (
    CachedEngine,
    LMPolicy,
    PolicyConfig,
    Rollout,
    SamplingParams,
    collect_rollouts,
    seed_of,
)
from research_rl.envs.protocols import get_prompt, render_result
from research_rl.envs.retrieval import load_retriever
from research_rl.envs.rewards.answers import f1_score
from research_rl.envs.synthetic.world import SyntheticWorld
from research_rl.envs.types import Question
from research_rl.trainers.callbacks.plots import learning_curves, read_metrics
from research_rl.trainers.measures import summarize

HOPS = (1, 2, 3)
TRAINED_HOPS = (1, 2)
RECIPES = {"quickstart": TRAINED_HOPS, "three_hops": HOPS}
"""What each recipe trains: questions of so many hops."""
ANSWER_NOW = "<think> I know enough . </think> <answer> the answer is \\boxed{"
SHOWN = ("f1", "searches", "chain", "format")
DONE = "done.json"
LOOK_EVERY = 5  # seconds, whether a run is over; what it has taken is written down then
Row = dict[str, Any]


def quickstart_config() -> dict[str, Any]:
    """Return the shipped quickstart."""
    text = files("research_rl.configs").joinpath("quickstart.yaml").read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def train_once(folder: Path, *options: str) -> float:
    """Run ``research fit`` into ``folder`` unless it has been, and return its minutes.

    Those of a run that was interrupted and goes on are the sum over its parts.

    Args:
        folder: of the run; its output goes to the end of ``log.txt`` there.
        options: of the command, ``--config`` among them.

    Raises:
        FileExistsError: the run in the folder had other options.
    """
    asked = folder / "asked.json"  # a run of before this was kept is taken as it is
    if asked.is_file() and (begun := json.loads(asked.read_text())) != list(options):
        raise FileExistsError(
            f"{folder} must hold a run of these options, got one of {' '.join(begun)} where "
            f"{' '.join(options)} is asked for; choose another --out, or remove it"
        )
    if (folder / DONE).is_file():
        return float(json.loads((folder / DONE).read_text())["minutes"])
    folder.mkdir(parents=True, exist_ok=True)
    asked.write_text(json.dumps(list(options)))
    command = [sys.executable, "-m", "research_rl.trainers.cli", "fit", *options]
    command += ["--trainer.default_root_dir", str(folder)]
    print("running", " ".join(command[3:]), file=sys.stderr, flush=True)
    spent = folder / "minutes.json"  # of a run that goes on: those of before count too
    before, start = float(spent.read_text()) if spent.is_file() else 0.0, time.perf_counter()
    code = None
    with (
        (folder / "log.txt").open("a") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as running,
    ):
        while code is None:
            with suppress(subprocess.TimeoutExpired):
                code = running.wait(LOOK_EVERY)
            spent.write_text(str(before + (time.perf_counter() - start) / 60))
    if code:
        raise subprocess.CalledProcessError(code, command)
    minutes = float(spent.read_text())
    (folder / DONE).write_text(json.dumps({"minutes": minutes}))
    return minutes


def fit(
    folder: Path, seed: int, world_seed: int, random_steps: int = 0, recipe: str = "quickstart"
) -> float:
    """Run a recipe into ``folder`` unless it has been, and return its minutes.

    Args:
        folder: of the run.
        seed: of everything but the world.
        world_seed: of the world.
        random_steps: if positive, the quickstart without its warm start, and so many steps.
        recipe: one of ``RECIPES``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = "quickstart"
    if random_steps:
        config = quickstart_config()
        config["trainer"]["callbacks"][0]["init_args"]["config"]["steps"] = 0
        config["trainer"]["max_steps"] = random_steps
        name = str(folder / "random.yaml")
        Path(name).write_text(yaml.safe_dump(config))
    more = () if recipe == "quickstart" else ("--config", recipe)
    seeds = ("--seed_everything", str(seed), "--data.world.seed", str(world_seed))
    return train_once(folder, "--config", name, *more, *seeds)


def answered(
    folder: Path, policy: LMPolicy, questions: Sequence[Question], greedy: bool = True
) -> list[Rollout]:
    """Let a policy answer questions as the quickstart trains it to.

    Args:
        folder: of the run, whose world is searched.
        policy: of the run.
        questions: about that world.
        greedy: or sampled at temperature 1, with seeds of their own.
    """
    settings = quickstart_config()["model"]
    env = gym.make_vec(
        "ReSearch-v0",
        num_envs=1,
        autoreset_mode="Disabled",
        index=str(folder / "world" / "index"),
        **{key: settings["env"][key] for key in ("top_k", "max_searches", "prompt")},
    )
    tokens = int(settings["sampling"]["max_response_tokens"])
    params = SamplingParams(tokens, temperature=0.0 if greedy else 1.0)
    seeds = [seed_of("exam", question.id) for question in questions]
    return collect_rollouts(questions, env, policy, CachedEngine(policy), params, seeds)


class Exam:
    """Asks the test people of one run's world.

    Args:
        folder: of the run.
        world_seed: of its world.
        num_questions: of each number of hops.
    """

    def __init__(self, folder: Path, world_seed: int, num_questions: int) -> None:
        world = SyntheticWorld(seed=world_seed)
        self.questions = {h: world.sample("test", h, num_questions) for h in HOPS}
        self.retriever = load_retriever(folder / "world" / "index")
        self.folder = folder

    def search(self, policy: LMPolicy, greedy: bool) -> Row:
        """Let the policy answer as it is trained to."""
        found: Row = {}
        for hops, questions in self.questions.items():
            played = answered(self.folder, policy, questions, greedy)
            found |= {f"{k}_{hops}hop": v for k, v in summarize(played, by_hop=()).items()}
        return found

    def closed_book(self, policy: LMPolicy) -> Row:
        """Make the policy answer without any search."""
        return self._forced(policy, lambda question: f" {ANSWER_NOW}", searches=0)

    def naive_rag(self, policy: LMPolicy) -> Row:
        """Make the policy answer behind one search with the question."""

        def given(question: Question) -> str:
            query = question.text.removeprefix("Who is ").removesuffix(" ?")
            result = render_result(self.retriever.search([question.text], 1)[0])
            thought = f"<think> I need {query} . </think> <search> {query} </search>"
            return f" {thought}{result} {ANSWER_NOW}"

        return self._forced(policy, given, searches=1)

    def _forced(self, policy: LMPolicy, given: Any, searches: int) -> Row:
        prompt, found = get_prompt("{prompt}"), {}
        params = SamplingParams(max_response_tokens=4, temperature=0.0)
        for hops, questions in self.questions.items():
            prompts = [
                policy.encode_prompt(prompt, q.text) + policy.encode(given(q)) for q in questions
            ]
            written = CachedEngine(policy).run(
                prompts, params, lambda stopped: [None] * len(stopped)
            )
            guesses = [policy.decode(s.response_ids).partition("}")[0] for s in written]
            scores = [f1_score(g, q.answers) for g, q in zip(guesses, questions, strict=True)]
            found |= {f"f1_{hops}hop": sum(scores) / len(scores), f"searches_{hops}hop": searches}
        return found


def load(folder: Path) -> LMPolicy:
    """Load a policy for sampling."""
    policy = LMPolicy.from_config(PolicyConfig(str(folder)))
    policy.eval()
    return policy


def measure_seed(folder: Path, seed: int, world_seed: int, num_questions: int) -> list[Row]:
    """Return the rows of one seed."""
    exam = Exam(folder, world_seed, num_questions)
    rows: list[Row] = []
    for name, policy in (
        ("warm start", load(folder / "warmstart")),
        ("after GRPO", load(folder / "policy")),
    ):
        rows.append({"policy": f"{name}, greedy", **exam.search(policy, greedy=True)})
        rows.append({"policy": f"{name}, sampled", **exam.search(policy, greedy=False)})
    rows.append({"policy": "after GRPO, closed book", **exam.closed_book(policy)})
    rows.append({"policy": "after GRPO, naive RAG", **exam.naive_rag(policy)})
    return [{"seed": seed, **row} for row in rows]


def stages(folder: Path, minutes: float) -> Row:
    """Return the minutes of each part of a run."""
    report = json.loads((folder / "warmstart" / "warmstart.json").read_text())
    with (folder / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    spent = {
        part: sum(float(line[f"time/{part}_s"] or 0) for line in lines) / 60
        for part in ("rollout", "update")
    }
    warm = float(report["seconds"]) / 60
    rest = minutes - warm - sum(spent.values())
    return {"total": minutes, "warm start": warm, **spent, "the rest": rest}


def random_weights(folder: Path, seed: int, world_seed: int, steps: int) -> Row:
    """Return the largest reward that GRPO from random weights met in any step."""
    fit(folder, seed, world_seed, random_steps=steps)
    reward = read_metrics(folder / "metrics.csv")["train/reward"]
    return {"seed": seed, "steps": len(reward.values), "largest reward": max(reward.values)}


def table(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Return rows as a Markdown table; what a row does not have is left blank."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(cell(row.get(c)) for c in columns)} |" for row in rows]
    return "\n".join(lines)


def failures(rows: Iterable[Row], recipe: str) -> list[str]:
    """Return which bars a greedy run does not reach, empty if it reaches all of them.

    That the warm start knows little is asked of the quickstart alone.
    """
    missed = []
    for row in rows:
        where = f"seed {row['seed']}, {row['policy']}"
        if row["policy"] == "warm start, greedy" and recipe == "quickstart":
            start = sum(row[f"f1_{h}hop"] for h in TRAINED_HOPS) / len(TRAINED_HOPS)
            if start > 0.35:
                missed.append(f"{where}: F1 {start:.2f} is above 0.35 already")
        if row["policy"] == "after GRPO, greedy":
            for hops in RECIPES[recipe]:
                for name, bar in (("f1", 0.95), ("chain", 0.9), ("format", 0.98)):
                    if row[f"{name}_{hops}hop"] < bar:
                        missed.append(f"{where}: {name} of {hops} hops is below {bar}")
                if abs(row[f"searches_{hops}hop"] - hops) > 0.1:
                    missed.append(f"{where}: {row[f'searches_{hops}hop']:.2f} searches")
    return missed


def main() -> None:
    """Run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--recipe", choices=RECIPES, default="quickstart")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--world_seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=200, help="of each number of hops")
    parser.add_argument("--random_steps", type=int, default=10, help="0 leaves this control out")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    rows: list[Row] = []
    times: list[Row] = []
    for seed in args.seeds:
        folder = args.out / f"seed-{seed}"
        minutes = fit(folder, seed, args.world_seed, recipe=args.recipe)
        times.append({"seed": seed, **stages(folder, minutes)})
        rows += measure_seed(folder, seed, args.world_seed, args.questions)
    control = []
    if args.random_steps:
        folder = args.out / "random-weights"
        control = [random_weights(folder, args.seeds[0], args.world_seed, args.random_steps)]
    columns = ["seed", "policy", *(f"{name}_{hops}hop" for hops in HOPS for name in SHOWN)]
    print(f"Test people, {args.questions} questions a number of hops, world {args.world_seed}\n")
    print(table(rows, columns), "\n\nMinutes\n")
    print(table(times, list(times[0])), "\n")
    if control:
        print("GRPO from random weights\n\n" + table(control, list(control[0])), "\n")
    print("\n".join(missed := failures(rows, args.recipe)) or "All bars are reached.")
    curve = args.out / "learning_curve.png"
    learning_curves([args.out / f"seed-{s}" / "metrics.csv" for s in args.seeds], curve)
    print(f"\ncurve: {curve}")
    if args.json:
        found = {"rows": rows, "minutes": times, "random weights": control, "missed": missed}
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
