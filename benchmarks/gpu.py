"""Rollouts and learning on a GPU: right against the CPU, then how fast against what it could do.

First a small float32 model samples and learns on both devices: share of equal tokens (also with
CUDA graphs), largest gap of the log-probs, of loss and gradient. Then Qwen2.5-shaped models with
random weights take whole steps (64 questions x 5 rollouts, 4 turns of 300 sampled tokens, 3 results
of 700, prompts of 400): ours, ours with CUDA graphs, and TRL's with Hugging Face generation, each
in a process of its own. 7B trains LoRA adapters, the others all weights. Shares are of this
device's own matrix products and copies, measured first: of the floor of the rollouts (products of
the prefill, then weights and keys read once a decode step) and of the peak of the products in the
reference and training passes (8 a weight and token, 6 where only adapters are trained). On a CPU
they are left out: small weights lie in its cache.

    pip install -e '.[bench,lora]'
    python benchmarks/gpu.py [--models 0.5B 1.5B 3B 7B] [--sides ours graphs trl] [--json FILE]
    python benchmarks/gpu.py --device cpu --models small --work small       # does it run?
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from meters import Meter, Metered, Stages, TheirMetered
from planned import SIZES, WORKS, Plan, Work, make_plan, make_policy
from steps import KL, our_module, reward, run_ours, trl_trainer

from research_rl.agents import CachedEngine, LMPolicy, SamplingParams
from research_rl.agents.policy import Reference
from research_rl.agents.policy.loading import LoraConfig
from research_rl.agents.types import Rollout
from research_rl.envs.types import Question, Reward
from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.learner import Learner
from research_rl.trainers.settings.options import Updates

LAYOUTS = {
    "0.5B": (24, 896, 14, 2, 4864),
    "1.5B": (28, 1536, 12, 2, 8960),
    "3B": (36, 2048, 16, 2, 11008),
    "7B": (28, 3584, 28, 4, 18944),
}
SIZES |= LAYOUTS
WORKS |= {"gpu": Work(64, 5, 4, 300, 700, 400), "small": Work(2, 2, 2, 8, 16, 16)}
VOCAB = 151_936
SIDES = ("ours", "graphs", "trl")
ADAPTED = ("7B",)
THEIR_ROWS = 8
"""Rollouts in a forward pass of TRL's, which has (rows, tokens) activations of all of them."""


@dataclass(frozen=True)
class Peaks:
    """What the device does at best."""

    flops: float  # a second, bf16 products
    bandwidth: float  # bytes a second, read and written


def wall(device: str) -> float:
    """Seconds, when the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peaks() -> Peaks:
    """Measure a large product and a large copy on the GPU."""
    size, bytes_ = 8192, 1 << 31
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    source = torch.zeros(bytes_, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)

    def best(run: Any) -> float:
        run()
        found = []
        for _ in range(10):
            start = wall("cuda")
            run()
            found.append(wall("cuda") - start)
        return min(found)

    return Peaks(2 * size**3 / best(lambda: a @ a), 2 * bytes_ / best(lambda: target.copy_(source)))


def correctness(device: str) -> dict[str, float]:
    """The engine and the learner in float32 on this device, against those on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    found = {where: _sample_and_learn(where, None) for where in ("cpu", device)}
    (ours, _), (there, _) = found["cpu"], found[device]
    same = [a == b for x, y in zip(ours, there, strict=True) for a, b in _pairs(x, y, "ids")]
    gaps = [abs(a - b) for x, y in zip(ours, there, strict=True) for a, b in _pairs(x, y, "logps")]
    learned = _sample_and_learn(device, ours)[1]
    recorded = _sample_and_learn(device, None, graphs=True)[0]
    alike = [a == b for x, y in zip(there, recorded, strict=True) for a, b in _pairs(x, y, "ids")]
    reference = found["cpu"][1]
    return {
        "tokens": len(same),
        "equal": sum(same) / len(same),
        "graphs_equal": sum(alike) / len(alike),
        "logprob_gap": max(gaps),
        "loss_gap": abs(float(learned[0] - reference[0])),
        "gradient_gap": float((learned[1] - reference[1]).norm() / reference[1].norm()),
    }


def _pairs(one: Any, other: Any, kind: str) -> list[tuple[Any, Any]]:
    """Tokens or log-probs of two sequences, up to the first token in which they differ."""
    ids = list(zip(one.response_ids, other.response_ids, strict=False))
    if kind == "ids":
        return ids
    same = next((i for i, (a, b) in enumerate(ids) if a != b), len(ids))
    return list(zip(one.logprobs[:same], other.logprobs[:same], strict=True))


def _sample_and_learn(
    device: str, sequences: Any, graphs: bool = False
) -> tuple[Any, tuple[Any, Any]]:
    """Sequences (sampled here where none are given), and loss and gradient on them, on the CPU."""
    policy = make_policy("small").to(device)
    reference = Reference(policy)
    if sequences is None:
        prompts = make_plan(WORKS["tiny"], False, policy).prompts
        result = policy.encode("x" * 40)
        engine = CachedEngine(policy, cuda_graphs=graphs)
        sequences = engine.run(
            prompts,
            SamplingParams(max_response_tokens=200),
            lambda stopped: [result for _ in stopped],
            range(len(prompts)),
        )
    rollouts = [
        Rollout(Question(str(row // 5), "", ("",), {}), s, Reward(reward(row)), [], [])
        for row, s in enumerate(sequences)
    ]
    batch = Batch.from_rollouts(rollouts, policy.pad_id).to(device)
    rule = GRPO(kl_coef=KL)
    learner = Learner(policy, rule, Updates(micro_batch_tokens=None), reference=reference)
    learner.score(batch)
    batch.weights = rule.weights(batch)
    loss = learner.backward(batch, lambda value: value.backward())["loss"]
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return sequences, (loss.cpu(), gradient.cpu())


def take_steps(side: str, model: str, folder: str, work: Work, device: str) -> dict[str, Any]:
    """Two steps of one side; what the second cost, and the memory of both."""
    stages = Stages(lambda: wall(device))
    adapted = model in ADAPTED
    if side != "trl":
        lora = LoraConfig() if adapted else None
        options: dict[str, Any] = {"micro_batch_tokens": 32768, "graphs": side == "graphs"}
        module = our_module(folder, "bfloat16", work, False, stages, lora, **options)
        ours = Metered(Meter(stages))
        run_ours(module, work, 2, ours)
        found = ours.found
    else:
        policy = make_policy("small")
        plan = make_plan(work, False, policy)
        adapter = None
        if adapted:
            from peft import LoraConfig as TheirLora

            adapter = TheirLora(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        rows = min(THEIR_ROWS, work.groups * work.group_size)
        trainer = trl_trainer(
            folder,
            "pure" if adapted else "bfloat16",
            plan,
            work,
            2,
            stages,
            adapter,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=work.groups * work.group_size // rows,
        )
        theirs = TheirMetered(Meter(stages))
        trainer.add_callback(theirs)
        trainer.train()
        found = theirs.found
    memory = found[1]["mb"] / 1024
    if device == "cuda":
        memory = torch.cuda.max_memory_reserved() / 2**30
    return found[1] | {"gb": memory}


def floors(model: str, work: Work, plan: Plan, limits: Peaks) -> dict[str, float]:
    """Seconds that rollouts and learning need at the device's peaks; see the top of this file."""
    layers, width, heads, key_heads, inner = SIZES[model]
    head = width // heads
    body = layers * width * (2 * width + 2 * key_heads * head + 3 * inner)
    output, position = VOCAB * width, 2 * layers * key_heads * head  # numbers
    rows = len(plan.prompts)
    sampled, results = work.turns * work.turn, (work.turns - 1) * work.result
    whole = work.prompt + sampled + results
    read = work.groups * work.prompt + rows * results
    shared = (rows - work.groups) * work.prompt**2  # a group's prompt is read once
    pairs = (rows * whole**2 - shared) / 2  # of a query and a key
    attention = 4 * layers * width * pairs
    decode = 2 * (sampled * (body + output) + rows * sampled * (whole + work.prompt) / 2 * position)
    tokens = work.groups * work.prompt + rows * (sampled + results)
    products = 6 if model in ADAPTED else 8  # frozen weights have no gradient of their own
    learning = products * (body * tokens + output * rows * sampled) + 4 * attention
    return {
        "rollout": 2 * body * read / limits.flops + decode / limits.bandwidth,
        "learner": learning / limits.flops,
    }


def table(checks: dict[str, float], rows: list[dict[str, Any]]) -> str:
    """The whole report as text."""
    lines = ["float32 against the CPU: " + ", ".join(f"{k} {v:.3g}" for k, v in checks.items())]
    lines += [
        "",
        "| model | | step s | rollout s | sampled tokens/s | share of the floor "
        "| ref + fwd + bwd s | MFU | GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if "failed" in r:
            lines.append(f"| {r['model']} | {r['side']} | {r['failed']} | | | | | | |")
            continue
        rollout = r["stages"]["rollout"]
        learner = sum(r["stages"][part] for part in ("reference", "forward", "backward"))
        lines.append(
            f"| {r['model']} | {r['side']} | {r['step']:.1f} | {rollout:.1f} "
            f"| {r['sampled'] / rollout:.0f} | {_share(r, 'rollout', rollout)} "
            f"| {learner:.1f} | {_share(r, 'learner', learner)} | {r['gb']:.1f} |"
        )
    if any("floor" not in r for r in rows if "failed" not in r):
        lines.append(
            "\nshares of the floor apply to a GPU: a CPU reads small weights from its cache"
        )
    return "\n".join(lines)


def _share(row: dict[str, Any], part: str, seconds: float) -> str:
    return f"{row['floor'][part] / seconds:.0%}" if "floor" in row else "-"


def measure(model: str, sides: list[str], work: str, device: str) -> list[dict[str, Any]]:
    """Both sides of one model, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        tied = model not in ADAPTED
        policy: LMPolicy = make_policy(model, VOCAB, torch.bfloat16, tied)
        policy.model.save_pretrained(folder)
        policy.tokenizer.pad_token = policy.tokenizer.eos_token
        policy.tokenizer.save_pretrained(folder)
        plan = make_plan(WORKS[work], False, policy)
        del policy
        for side in sides:
            settings = ["--side", side, "--folder", folder, "--models", model, "--work", work]
            command = [sys.executable, __file__, *settings, "--device", device]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            row: dict[str, Any] = {"model": model, "side": side}
            if done.returncode:
                row["failed"] = (done.stderr.strip().splitlines() or ["killed"])[-1][:200]
            else:
                row |= json.loads(done.stdout.splitlines()[-1])
                if device == "cuda":
                    row["floor"] = floors(model, WORKS[work], plan, peaks())
            rows.append(row)
    return rows


def main() -> None:
    """Check, measure, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="*", choices=SIZES, default=list(LAYOUTS))
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=list(SIDES))
    parser.add_argument("--work", choices=WORKS, default="gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", help="write the figures here as well")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("a CUDA device must be there, got none; try --device cpu --models small")
    if args.side:
        work = WORKS[args.work]
        found = take_steps(args.side, args.models[0], args.folder, work, args.device)
        print(json.dumps(found))
        return
    checks = correctness(args.device)
    rows: list[dict[str, Any]] = []
    for model in args.models:
        rows += measure(model, args.sides, args.work, args.device)
        print(table(checks, rows), flush=True)
        if args.json:
            whole = {"checks": checks, "rows": rows, "torch": torch.__version__}
            Path(args.json).write_text(json.dumps(whole, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
