"""What the cached engine saves: the same rollouts by it, by generate, and by continuous batching.

Random models write a planned number of tokens a turn, a "search" returns a planned number of
tokens, and every way computes the same plan: (1) CachedEngine, (2) ``generate`` on the padded
batch, turn by turn, (3) one manager of transformers' continuous batching, which is given each row's
next turn as soon as the last one is over. (2) and (3) read the whole history again at every turn.
The ways are run in turn and medians are compared. CPU seconds are the process's own; wall seconds
are shown for slow searches, where waiting is what is measured.

    python benchmarks/engine.py [--size tiny|m100] [--dtypes float32 bfloat16] [--peers generate]
        [--shapes uniform ragged] [--delays 0 5 100] [--repeats 3] [--json FILE]

With ``--model FOLDER`` only the log-probs are compared, those of a real model:

    python benchmarks/engine.py --model FOLDER --dtypes float32 bfloat16 float16 --tokens 64
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from planned import (
    WORKS,
    Plan,
    PlannedEngine,
    free_sampling,
    generate_turns,
    make_plan,
    make_policy,
)
from tqdm import tqdm
from transformers import ContinuousBatchingConfig

from research_rl.agents import CachedEngine, LMPolicy, PolicyConfig, SamplingParams, Sequence

PEERS = ("generate", "continuous")


def by_engine(engine: PlannedEngine, delay: float = 0.0) -> tuple[int, int]:
    """Run the plan; (sampled, prefilled) tokens."""

    def on_stop(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
        if any(s.finish == "stop" for _, s in stopped):
            time.sleep(delay)
        return [engine.plan.result if s.finish == "stop" else None for _, s in stopped]

    params = SamplingParams(max_response_tokens=engine.plan.budget)
    engine.run(engine.plan.prompts, params, on_stop, range(len(engine.plan.prompts)))
    return engine.stats.sampled_tokens, engine.stats.prefilled_tokens


def by_generate(model: Any, plan: Plan) -> tuple[int, int]:
    """Turn by turn, all rows that have one padded on the left; (sampled, prefilled) tokens."""
    counts = {"sampled": 0, "prefilled": 0}
    generate_turns(model, plan, counts)
    return counts["sampled"], counts["prefilled"]


def by_continuous_batching(model: Any, plan: Plan) -> tuple[int, int]:
    """Each row's next turn is asked for as soon as its last is over; (sampled, prefilled)."""
    history, turn = [list(p) for p in plan.prompts], [0] * len(plan.prompts)
    sampled = read = 0
    longest, page = max(map(max, plan.turns)), 256
    pages = len(history) * -(-(len(history[0]) + plan.budget) // page)  # else it takes all memory
    with model.continuous_batching_context_manager(
        generation_config=free_sampling(longest),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=page, num_blocks=pages, max_batch_tokens=4096
        ),
        block=True,
        timeout=10,
        warmup=False,
    ) as manager:
        row_of: dict[str, int] = {}

        def ask(row: int) -> None:
            tokens = plan.turns[row][turn[row]]
            row_of[manager.add_request(history[row], max_new_tokens=tokens)] = row

        for row in range(len(history)):
            ask(row)
        while row_of:
            result = manager.get_result(timeout=1)
            if result is None or not result.is_finished():
                if not manager.is_running():
                    raise RuntimeError("continuous batching ended before its requests did")
                continue
            row = row_of.pop(result.request_id)
            read += len(history[row])
            sampled += len(result.generated_tokens)
            history[row] += list(result.generated_tokens) + plan.result
            turn[row] += 1
            if turn[row] < len(plan.turns[row]):
                ask(row)
    return sampled, read


def timed(ways: dict[str, Callable[[], Any]], repeats: int, name: str) -> dict[str, Any]:
    """Median CPU and wall seconds of each way, run in turn."""
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    wall: dict[str, list[float]] = {way: [] for way in ways}
    said: dict[str, Any] = {}
    for _ in tqdm(range(repeats), desc=name):
        for way, run in ways.items():
            start, began = time.process_time(), time.perf_counter()
            said[way] = run()
            cpu[way].append(time.process_time() - start)
            wall[way].append(time.perf_counter() - began)
    return {
        way: {
            "cpu_s": statistics.median(cpu[way]),
            "wall_s": statistics.median(wall[way]),
            "said": said[way],
        }
        for way in ways
    }


def compare(size: str, dtype: str, ragged: bool, repeats: int, peers: list[str]) -> dict[str, Any]:
    """Our engine against transformers' ways, on one plan."""
    policy = make_policy(size)
    plan = make_plan(WORKS[size], ragged, policy)
    low: Any = None if dtype == "float32" else dtype
    engine = PlannedEngine(policy, dtype=low).follow(plan)
    peer: Any = make_policy(size).model
    peer.to(getattr(torch, dtype))
    ways: dict[str, Callable[[], tuple[int, int]]] = {
        "engine": lambda: by_engine(engine),
        "generate": lambda: by_generate(peer, plan),
        "continuous": lambda: by_continuous_batching(peer, plan),
    }
    ways = {way: run for way, run in ways.items() if way in ("engine", *peers)}
    shape = "ragged" if ragged else "uniform"
    found = timed(ways, repeats, f"{size} {dtype} {shape}")
    row: dict[str, Any] = {"size": size, "dtype": dtype, "shape": shape, "sampled": plan.sampled}
    for way, figures in found.items():
        sampled, read = figures.pop("said")
        if sampled != plan.sampled:
            raise RuntimeError(f"{way} must sample {plan.sampled} tokens, got {sampled}")
        row[way] = figures | {"prefilled": read}
    return row


def slow_searches(size: str, delay_ms: float, repeats: int) -> dict[str, Any]:
    """Wall seconds with searches of so many milliseconds a call, waited for and overlapped."""
    policy = make_policy(size)
    plan = make_plan(WORKS[size], True, policy)
    engines = {
        "waiting": PlannedEngine(policy),
        "overlapped": PlannedEngine(policy, overlap_searches=True),
        "as they arrive": PlannedEngine(policy, overlap_searches=True, deterministic=False),
    }

    def run(engine: PlannedEngine) -> tuple[int, int]:
        by_engine(engine.follow(plan), delay_ms / 1e3)
        return engine.stats.steps, engine.stats.stop_calls

    ways = {name: lambda engine=engine: run(engine) for name, engine in engines.items()}
    return {"delay_ms": delay_ms, **timed(ways, repeats, f"{size} search of {delay_ms:g} ms")}


ASKED = (
    "Who wrote the novel that the film is based on?",
    "What is the capital of Peru?",
    "Explain in one sentence why the sky is blue.",
    "List three rivers of Europe and the seas they flow into.",
    "Which is older, the Eiffel Tower or the Statue of Liberty?",
    "Translate into French: the cat sleeps on the roof.",
    "A train leaves at nine and takes four hours. When does it arrive?",
    "Name the president of the United States in 1962.",
)
"""What a real model is asked, to have something to write."""


@torch.no_grad()
def mismatch(size: str, dtype: str, model: str | None, tokens: int) -> dict[str, Any]:
    """|log-prob sampled - log-prob of a stock float32 forward| over sampled, unforced tokens."""
    low: Any = None if dtype == "float32" else dtype
    params, gaps = SamplingParams(max_response_tokens=tokens), []
    if model is None:
        policy = make_policy(size)
        prompts = make_plan(WORKS[size], False, policy).prompts
    else:
        policy = LMPolicy.from_config(PolicyConfig(model, dtype="float32"))
        policy.eval()
        prompts = [policy.encode(f"Question: {one}\nAnswer:") for one in ASKED]
    result = policy.encode("x" * 60)
    engine = CachedEngine(policy, dtype=low)
    for s in engine.run(prompts, params, lambda st: [result for _ in st], range(len(prompts))):
        ids = torch.tensor([s.prompt_ids + s.response_ids])
        out = policy(ids, torch.ones_like(ids), entropy=False).logprobs[0, len(s.prompt_ids) - 1 :]
        gaps.append((out - torch.tensor(s.logprobs))[torch.tensor(s.loss_mask)].abs())
    gap = torch.cat(gaps)
    beyond = (gap.exp() - 1 > 0.05).float().mean()
    return {
        "dtype": dtype,
        "tokens": len(gap),
        "mean": float(gap.mean()),
        "max": float(gap.max()),
        "beyond_5_percent": float(beyond),
    }


def show(report: dict[str, Any]) -> None:
    """Print the tables."""
    if report["compare"]:
        print("\nCPU s of a rollout                        CPU s   ratio  prefilled")
    for r in report["compare"]:
        for way in filter(r.__contains__, ("engine", *PEERS)):
            ratio = r[way]["cpu_s"] / r["engine"]["cpu_s"]
            print(
                f"{r['size']:6}{r['dtype']:9}{r['shape']:9}{way:14}"
                f"{r[way]['cpu_s']:8.2f}{ratio:8.2f}{r[way]['prefilled']:11d}"
            )
    if report["searches"]:
        print("\nWall s of a ragged rollout, float32     waiting  overlapped  as they arrive")
    for r in report["searches"]:
        names = ("waiting", "overlapped", "as they arrive")
        walls = "".join(f"{r[n]['wall_s']:12.2f}" for n in names)
        print(f"a search takes {r['delay_ms']:5.0f} ms{'':11}{walls}")
    print("\n|log-prob gap| to a stock float32 forward: tokens, mean, max, beyond 5 %")
    for r in report["mismatch"]:
        print(
            f"{r['dtype']:9}{r['tokens']:8d}  {r['mean']:.2g}  {r['max']:.2g}  "
            f"{r['beyond_5_percent']:.2%}"
        )


def main() -> None:
    """Run what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--size", choices=WORKS, default="tiny")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--shapes", nargs="*", default=["uniform", "ragged"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--delays", nargs="*", type=float, default=[0, 5, 100])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", help="folder of a real model, whose log-probs are compared")
    parser.add_argument("--tokens", type=int, default=300, help="of a rollout in that comparison")
    parser.add_argument("--json", help="write the figures here as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "compare": [
            compare(args.size, dtype, shape == "ragged", args.repeats, args.peers)
            for dtype in args.dtypes
            for shape in args.shapes
            if not args.model
        ],
        "searches": [
            slow_searches(args.size, delay, args.repeats) for delay in args.delays if not args.model
        ],
        "mismatch": [mismatch(args.size, dtype, args.model, args.tokens) for dtype in args.dtypes],
    }
    show(report)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
