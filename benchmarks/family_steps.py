"""An iteration of the newest families beside one of a Llama of equal size.

Models with random weights of one width have as many layers as bring them nearest to Llama's number
of parameters. Each takes the same iterations: rollouts of up to three turns, each over at any of
fifty stop words, with a planned result behind it; then a GRPO step on them, in float32. The engine
is the one that a run would take (``engine_for``), the learner packed or padded as a run would have
it. Lengths are random, so seconds are per 1,000 sampled tokens; they are the process's own, and
each model runs in a process of its own.

    python benchmarks/family_steps.py [--families mamba2 lfm2] [--hidden 256] [--steps 3]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched: shapes and weights are made here

import pytorch_lightning as pl
import torch
from meters import Stages
from planned import Work
from steps import PlannedModule, rewarded, run_ours
from transformers import AutoConfig, AutoModelForCausalLM

from research_rl.agents import LMPolicy, SamplingParams, Sequence
from research_rl.agents.engines import engine_for
from research_rl.agents.policy.loading import PolicyConfig
from research_rl.agents.types import Engine, Rollout
from research_rl.envs.types import Question
from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.settings.options import Updates
from research_rl.trainers.warmstart.tiny_model import word_tokenizer

STOPS = tuple(f"z{i};" for i in range(50))
WORDS = [*STOPS, *(f"a{i}." for i in range(2000))]
WORK = Work(groups=4, group_size=4, turns=3, turn=40, result=64, prompt=64)
LAYERS = 4
"""Of the Llama."""


def fields(family: str, hidden: int, layers: int) -> dict[str, Any]:
    """The config of a family at one width; what a family does not have is not given to it."""
    heads = hidden // 32
    attention = {
        **{"num_attention_heads": heads, "num_key_value_heads": heads // 2, "head_dim": 32},
        "intermediate_size": 4 * hidden,
    }
    own: dict[str, Any] = {
        "llama": attention,
        "mamba2": {"num_heads": 2 * heads, "head_dim": 32, "state_size": 64, "n_groups": 1}
        | {"chunk_size": 64},
        "falcon_h1": attention
        | {"mamba_d_ssm": 2 * hidden, "mamba_n_heads": 2 * heads, "mamba_d_head": 32}
        | {"mamba_d_state": 64, "mamba_n_groups": 1, "mamba_chunk_size": 64},
        "qwen3_next": attention
        | {"layer_types": kinds(layers, ["linear_attention"] * 3 + ["full_attention"])}
        | {"linear_num_key_heads": heads // 2, "linear_num_value_heads": heads}
        | {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
        | {"mlp_only_layers": list(range(layers)), "num_experts": 0},
        "lfm2": attention
        | {"layer_types": kinds(layers, ["conv", "conv", "full_attention"])}
        | {"block_auto_adjust_ff_dim": False},
        "recurrent_gemma": attention
        | {"block_types": ["recurrent", "recurrent", "attention"], "lru_width": hidden}
        | {"attention_window_size": 512},
    }[family]
    shared = {"vocab_size": len(WORDS) + 4, "hidden_size": hidden, "num_hidden_layers": layers}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {**shared, **ends, "tie_word_embeddings": True, "max_position_embeddings": 2048, **own}


FAMILIES = ("mamba2", "falcon_h1", "qwen3_next", "lfm2", "recurrent_gemma")


def kinds(layers: int, cycle: list[str]) -> list[str]:
    """A kind for each layer, again and again, with attention in the last one."""
    found = (cycle * layers)[:layers]
    return [*found[:-1], "full_attention"]


def parameters(family: str, hidden: int, layers: int) -> int:
    """Count the parameters of a model that is not made."""
    with torch.device("meta"):
        config = AutoConfig.for_model(family, **fields(family, hidden, layers))
        model = AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


def layers_for(family: str, hidden: int, wanted: int) -> int:
    """Return how many layers bring a family nearest to a number of parameters."""
    least = 2 if family != "recurrent_gemma" else 3
    sizes = {n: parameters(family, hidden, n) for n in range(least, 6 * LAYERS)}
    return min(sizes, key=lambda n: abs(sizes[n] - wanted))


class StoppedModule(PlannedModule):
    """Rollouts whose turns end at stop words; each is answered with a result, twice."""

    def _play(
        self,
        questions: list[Question],
        params: SamplingParams,
        seeds: list[int],
        policy: LMPolicy,
        engine: Engine,
    ) -> list[Rollout]:
        g = torch.Generator().manual_seed(int(self.iteration))
        draws = torch.randint(len(STOPS) + 4, len(WORDS), (len(questions) + 1, 64), generator=g)
        prompts = [draws[row // WORK.group_size].tolist() for row in range(len(questions))]
        result, turns = draws[-1].tolist(), [0] * len(questions)

        def on_stop(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
            told: list[list[int] | None] = []
            for row, sequence in stopped:
                turns[row] += 1
                more = sequence.finish == "stop" and turns[row] < WORK.turns
                told.append(result if more else None)
            return told

        budget = SamplingParams(max_response_tokens=600, stop=STOPS)
        with self.stages.timed("rollout"):
            found = engine.run(prompts, budget, on_stop, seeds)
        self.stages.counts["sampled"] += sum(sum(s.loss_mask) for s in found)
        return rewarded(questions, found)


class _Rows(pl.Callback):
    """Keeps the seconds of each iteration behind the first, which compiles and allocates."""

    def __init__(self, stages: Stages) -> None:
        self.stages, self.rows = stages, list[dict[str, Any]]()
        self._began = stages.clock()

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        """Take what the iteration counted."""
        now = self.stages.clock()
        found = self.stages.take()
        rollout = found["stages"]["rollout"]
        self.rows.append(
            {"rollout": rollout, "learn": now - self._began - rollout, "sampled": found["sampled"]}
        )
        self._began = self.stages.clock()


def measured(family: str, hidden: int, layers: int, steps: int) -> dict[str, Any]:
    """Train a family for some iterations, and return the medians of all but the first."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **fields(family, hidden, layers))
    )
    stages, engines = Stages(), list[str]()

    def engine(policy: LMPolicy) -> Any:
        made = engine_for(policy)
        engines.append(type(made).__name__)
        return made

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        word_tokenizer(WORDS).save_pretrained(folder)
        module = StoppedModule(
            PolicyConfig(folder, dtype="float32"),
            algorithm=GRPO(kl_coef=1e-3),
            engine=engine,
            updates=Updates(group_size=WORK.group_size, micro_batch_tokens=4096),
            optimizer=lambda p: torch.optim.AdamW(p, lr=1e-6),
        )
        module.stages = stages
        rows = _Rows(stages)
        run_ours(module, WORK, steps + 1, rows)
    kept = rows.rows[1:]
    per = {
        n: statistics.median(1000 * r[n] / r["sampled"] for r in kept) for n in ("rollout", "learn")
    }
    size = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    facts = {"family": family, "layers": layers, "parameters": size, "engine": engines[-1]}
    return facts | per | {"iteration": per["rollout"] + per["learn"]}


def _work(pipe: Any, *args: Any) -> None:
    logging.disable(logging.WARNING)
    try:
        pipe.send(measured(*args))
    except Exception as error:
        pipe.send({"family": args[0], "error": f"{type(error).__name__}: {error}"[:200]})


def apart(*args: Any) -> dict[str, Any]:
    """Run ``measured`` in a process of its own."""
    context: Any = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, *args))
    process.start()
    row: dict[str, Any] = ours.recv()
    process.join()
    return row


def table(rows: Many[dict[str, Any]]) -> str:
    """The rows as a table, each beside Llama's."""
    base = rows[0]["iteration"]
    lines = [
        "| family | layers | parameters, M | engine | rollout | learning | iteration | x Llama's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['family']} | {row['error']} |")
            continue
        seconds = " | ".join(f"{row[name]:.2f}" for name in ("rollout", "learn", "iteration"))
        lines.append(
            f"| {row['family']} | {row['layers']} | {row['parameters'] / 1e6:.2f} | "
            f"{row['engine']} | {seconds} | {row['iteration'] / base:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure Llama, then each family."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--hidden", type=int, default=256, help="width, a multiple of 64")
    parser.add_argument("--steps", type=int, default=3, help="iterations behind the first")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    wanted = parameters("llama", args.hidden, LAYERS)
    rows = []
    for family in ("llama", *args.families):
        layers = LAYERS if family == "llama" else layers_for(family, args.hidden, wanted)
        rows.append(apart(family, args.hidden, layers, args.steps))
        print(rows[-1], flush=True)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
