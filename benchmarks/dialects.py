"""The quickstart in several dialects: the same world, model and settings, another language.

Each run is ``research fit --config quickstart`` with the protocol, the question alone as prompt and
room for the longer messages of chats. The trained policy then answers questions about the test
people, greedily. A table is printed, F1 by number of hops beside the searches made.

    python benchmarks/dialects.py --seeds 1 2 --out runs/dialects

A run that is already in its folder is not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from quickstart import train_once

from research_rl.agents import (
    CachedEngine,
    LMPolicy,
    PolicyConfig,
    SamplingParams,
    collect_rollouts,
)
from research_rl.envs.protocols import get_protocol
from research_rl.envs.synthetic import SyntheticWorld
from research_rl.trainers.measures import summarize

DIALECTS = ("research", "search_r1", "hermes", "o2")
HOPS = (1, 2)
TOKENS = 220  # of a response: four calls in JSON, each with its result
Row = dict[str, Any]


def settings_of(dialect: str) -> dict[str, Any]:
    """Return what a dialect changes of the quickstart's config."""
    protocol = get_protocol(dialect)
    env: dict[str, Any] = {"protocol": dialect}
    if protocol.keeps_eos:
        env["prompt"] = {"user": "{prompt}", "tools": False}
    if dialect == "o2":  # two queries a turn, and as many turns as the others have
        env["max_searches"] = 8
    return {"model": {"env": env, "sampling": {"max_response_tokens": TOKENS}}}


def fit(dialect: str, seed: int, folder: Path) -> float:
    """Run the quickstart in a dialect, unless that is done; return its minutes."""
    folder.mkdir(parents=True, exist_ok=True)
    overlay = folder / "dialect.yaml"
    overlay.write_text(yaml.safe_dump(settings_of(dialect)))
    configs = ("--config", "quickstart", "--config", str(overlay))
    return train_once(folder, *configs, "--seed_everything", str(seed))


def exam(dialect: str, folder: Path, number: int) -> Row:
    """Ask the trained policy about test people; return F1 and searches by number of hops."""
    kept = folder / f"exam_{number}.json"
    if kept.is_file():
        found: Row = json.loads(kept.read_text())
        return found
    settings = settings_of(dialect)["model"]["env"]
    env = gym.make_vec(
        "ReSearch-v0",
        num_envs=1,
        autoreset_mode="Disabled",
        index=str(folder / "world" / "index"),
        top_k=1,
        **{"max_searches": 4, "prompt": "{prompt}", **settings},
    )
    policy = LMPolicy.from_config(PolicyConfig(str(folder / "policy"))).eval()
    params = SamplingParams(TOKENS, temperature=0.0)
    world, row = SyntheticWorld(), {}
    for hops in HOPS:
        asked = world.sample("test", hops, number)
        played = collect_rollouts(asked, env, policy, CachedEngine(policy), params)
        row |= {f"{k}_{hops}hop": v for k, v in summarize(played, by_hop=()).items()}
    kept.write_text(json.dumps(row))
    return row


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    head = ["dialect", "seed", "F1, 1 hop", "F1, 2 hops", "searches, 1 hop", "2 hops", "form"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        numbers = [row[f"f1_{h}hop"] for h in HOPS] + [row[f"searches_{h}hop"] for h in HOPS]
        form = sum(row[f"format_{h}hop"] for h in HOPS) / len(HOPS)
        cells = [row["dialect"], str(row["seed"]), *(f"{x:.2f}" for x in [*numbers, form])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dialects", nargs="+", default=list(DIALECTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--questions", type=int, default=200, help="of each number of hops")
    parser.add_argument("--out", type=Path, default=Path("runs/dialects"))
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        for dialect in args.dialects:
            folder = args.out / f"{dialect}-seed-{seed}"
            minutes = fit(dialect, seed, folder)
            row = exam(dialect, folder, args.questions)
            rows.append({"dialect": dialect, "seed": seed, "minutes": minutes, **row})
    print(table(rows))


if __name__ == "__main__":
    main()
