"""Does a policy learn to say "unknown" where it should? The quickstart with facts left out.

Each run is the quickstart with ``data.world.unanswerable_share`` and one of ``RECIPES``: as it is,
with a reward in which it costs something to say "unknown" where there is an answer, or after a warm
start with more right demonstrations. Warm start and last policy then answer questions about the
test people greedily: those that the corpus answers and those that it does not, by number of hops.

    python benchmarks/unanswerable.py --out runs/unanswerable --seeds 1 2 3

A run that is already in its folder is not repeated, and one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from quickstart import TRAINED_HOPS, answered, load, quickstart_config, table, train_once

from research_rl.agents import LMPolicy
from research_rl.envs import Question
from research_rl.envs.rewards import f1_score
from research_rl.envs.rewards.terms import abstained
from research_rl.envs.synthetic import SyntheticWorld

RECIPES: dict[str, tuple[float, dict[str, Any] | None]] = {
    "quickstart": (0.2, None),
    "abstain 0.3": (0.2, {"answer": 0.7, "abstain": 0.3}),
    "abstain 0.2": (0.2, {"answer": 0.8, "abstain": 0.2}),
    "good_share 0.5": (0.5, None),
    "good_share 0.9": (0.9, None),
}
"""Share of right demonstrations in the warm start, and terms of the reward (None: its default)."""
Row = dict[str, Any]


def asked(share: float, number: int) -> list[Question]:
    """Return questions about the test people: as many with an answer as without, for each hops.

    Args:
        share: of the facts that no passage states.
        number: of each kind and number of hops.

    Raises:
        ValueError: the world has not so many of a kind.
    """
    world, found = SyntheticWorld(unanswerable_share=share), list[Question]()
    for hops in TRAINED_HOPS:
        # a world of 600 has 1,440 questions of one hop about its test people
        questions = world.sample("test", hops, 1400)
        for missing in (False, True):
            kind = [q for q in questions if q.metadata.get("unanswerable", False) == missing]
            if len(kind) < number:
                word = "without" if missing else "with"
                raise ValueError(
                    f"{number} questions of {hops} hops {word} an answer are asked for, and a "
                    f"share of {share} gives {len(kind)}; lower --questions"
                )
            found += kind[:number]
    return found


def write_recipe(folder: Path, recipe: str, share: float, seed: int, steps: int | None) -> Path:
    """Write the quickstart as a recipe has it."""
    config, (good, terms) = quickstart_config(), RECIPES[recipe]
    config["trainer"]["callbacks"][0]["init_args"]["config"]["good_share"] = good
    config["data"]["world"]["unanswerable_share"] = share
    config["seed_everything"] = seed
    if terms is not None:
        config["model"]["env"]["reward"] = {"terms": terms}
    if steps is not None:
        config["trainer"]["max_steps"] = steps
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def exam(folder: Path, policy: LMPolicy, questions: Sequence[Question]) -> list[Row]:
    """Let a policy answer greedily; return a row for each kind of question and number of hops."""
    played = answered(folder, policy, questions)
    rows = []
    for missing in (False, True):
        for hops in TRAINED_HOPS:
            kind = [
                r
                for r in played
                if r.question.metadata.get("unanswerable", False) == missing
                and r.question.metadata["hops"] == hops
            ]
            said = [r.reward.prediction for r in kind]
            f1 = [f1_score(s, r.question.answers) for s, r in zip(said, kind, strict=True)]
            rows.append(
                {
                    "questions": "without an answer" if missing else "with an answer",
                    "hops": hops,
                    "number": len(kind),
                    "F1": fmean(f1),
                    "says unknown": fmean(map(abstained, said)),
                    "form": fmean(float(r.reward.format_error is None) for r in kind),
                    "searches": fmean(float(r.num_searches) for r in kind),
                }
            )
    return rows


def main() -> None:
    """Run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/unanswerable"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--share", type=float, default=0.1, help="of the facts, left out")
    parser.add_argument("--questions", type=int, default=100, help="of each kind and hops")
    parser.add_argument("--steps", type=int, help="iterations of a run, else the quickstart's")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    questions = asked(args.share, args.questions)
    rows: list[Row] = []
    for recipe in args.recipes:
        for seed in args.seeds:
            name = f"share-{args.share:g}/{recipe.replace(' ', '-')}/seed-{seed}"
            folder = args.out / name
            file = write_recipe(folder, recipe, args.share, seed, args.steps)
            train_once(folder, "--config", str(file), "--ckpt_path", "last")
            for policy, part in (("warm start", "warmstart"), ("after GRPO", "policy")):
                of = {"recipe": recipe, "seed": seed, "policy": policy}
                rows += [of | row for row in exam(folder, load(folder / part), questions)]
    (args.out / "unanswerable.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    print(f"{args.share:.0%} of the facts are left out\n")
    print(table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
