"""Real steps of a Qwen2.5 shape with random weights on one GPU: peak memory against the plan.

    python benchmarks/gpu_train.py --size 7B --how lora
    python benchmarks/gpu_train.py --size 7B --how parked    # full, optimizer states parked
    python benchmarks/gpu_train.py --size 7B --how 8bit      # full, AdamW of bitsandbytes
    python benchmarks/gpu_train.py --size tiny --how parked --accelerator cpu

The weights are random, so no reward is learned: measured are memory and time. Rollouts,
searches in the built-in world, reference pass and updates are those of `research fit`. The
weights are written to --folder once, 15 GB for 7B in bf16.
"""

from __future__ import annotations

import argparse
import json
import resource
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import SamplingParams
from research_rl.envs.retrieval.index.estimate import held_now
from research_rl.envs.synthetic.world import builtin_world
from research_rl.trainers.data import QuestionDataModule
from research_rl.trainers.module import ReSearchModule
from research_rl.trainers.plan.memory import memory_of
from research_rl.trainers.plan.seconds import DEVICES, phase_seconds
from research_rl.trainers.plan.sizes import counted, qwen25
from research_rl.trainers.settings.options import EnvConfig, Updates
from research_rl.trainers.warmstart.demonstrations import TAGS, WORDS
from research_rl.trainers.warmstart.tiny_model import word_tokenizer

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024}
HOW = ("lora", "parked", "8bit")


@dataclass
class Timer(pl.Callback):
    """Seconds of each iteration."""

    def __post_init__(self) -> None:
        self.seconds: list[dict[str, float]] = []
        self._start = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Start the clock."""
        self._start = perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Stop it, and take over the parts that the module has timed."""
        parts = ("time/rollout_s", "time/update_s")
        metrics = {k: float(trainer.callback_metrics[k]) for k in parts}
        self.seconds.append({"iteration": perf_counter() - self._start, **metrics})


def shape_of(size: str) -> Qwen2Config:
    """The model's config."""
    if size != "tiny":
        return qwen25(size)
    return Qwen2Config(**TINY, max_position_embeddings=4096)


def write(folder: Path, shape: Qwen2Config, device: torch.device) -> Path:
    """Write random weights in bf16 and a tokenizer, once."""
    if (folder / "tokenizer_config.json").is_file():
        return folder
    questions, _ = builtin_world()
    words = dict.fromkeys(word for q in questions for word in q.text.split())
    tokenizer = word_tokenizer([*TAGS, *WORDS, *words])
    shape.eos_token_id, shape.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    LMPolicy(model, tokenizer).save_pretrained(folder)
    return folder


def build(args: argparse.Namespace, folder: Path) -> ReSearchModule:
    """The module, trained in one of three ways."""
    lora = args.how == "lora"
    policy = PolicyConfig(
        str(folder),
        dtype="bfloat16" if lora else "float32",
        gradient_checkpointing=True,
        lora=LoraConfig(r=16) if lora else None,
    )

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        if args.how != "8bit":
            return torch.optim.AdamW(parameters, lr=1e-6)
        try:
            from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
        except ModuleNotFoundError as error:
            raise SystemExit(
                "--how 8bit must have bitsandbytes; pip install bitsandbytes"
            ) from error
        made: torch.optim.Optimizer = AdamW8bit(parameters, lr=1e-6)
        return made

    return ReSearchModule(
        policy,
        env=EnvConfig(top_k=1, prompt="{prompt}"),
        engine=lambda p: CachedEngine(p, max_slots=args.slots, dtype="bfloat16"),
        sampling=SamplingParams(args.response),
        updates=Updates(
            args.group,
            micro_batch_tokens=args.micro_tokens,
            compute_dtype=None if lora else "bfloat16",
            park_optimizer=args.how == "parked",
        ),
        optimizer=optimizer,
    )


def planned(args: argparse.Namespace, module: ReSearchModule) -> dict[str, Any]:
    """What `research plan` says of it, with the lengths that came up."""
    lengths = [len(r.sequence.response_ids) for r in module.train_rollouts]
    mean = round(sum(lengths) / len(lengths))
    sampled = sum(sum(r.sequence.loss_mask) for r in module.train_rollouts) / max(1, sum(lengths))
    sizes = replace(
        counted(module.policy_config, shape_of(args.size)),
        compute=None if args.how == "lora" else "bfloat16",
        sampling="bfloat16",
        state_bytes=1.0 if args.how == "8bit" else None,
        parked=args.how == "parked",
        questions=args.questions,
        group=args.group,
        slots=args.slots,
        micro_tokens=args.micro_tokens,
        prompt=max(len(r.sequence.prompt_ids) for r in module.train_rollouts),
        response=max(lengths),
        mean_response=mean,
        sampled=sampled,
    )
    memory = memory_of(sizes, on_cpu=args.accelerator == "cpu")
    seconds = phase_seconds(sizes, DEVICES[args.device])
    return {"planned_bytes": memory.peak, "planned": vars(memory), "planned_seconds": seconds}


def main() -> None:
    """Train some iterations and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="7B", help="of Qwen2.5, or tiny; default 7B")
    parser.add_argument("--how", choices=HOW, default="lora")
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu_train"))
    parser.add_argument("--accelerator", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--device", choices=DEVICES, default="h100", help="for the planned time")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--response", type=int, default=1024)
    parser.add_argument("--micro-tokens", type=int, default=8192)
    args = parser.parse_args()
    if args.accelerator == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --size tiny --accelerator cpu tries the command")
    on_gpu = args.accelerator == "cuda"
    folder = write(args.folder / args.size, shape_of(args.size), torch.device(args.accelerator))
    rows = (
        {"id": q.id, "question": q.text, "golden_answers": list(q.answers)}
        for q in builtin_world()[0]
    )
    data = args.folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    before = 0 if on_gpu else held_now()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    module, timer = build(args, folder), Timer()
    trainer = pl.Trainer(
        accelerator=args.accelerator,
        devices=1,
        max_steps=args.steps,
        max_epochs=-1,
        callbacks=[timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=args.folder,
    )
    questions = QuestionDataModule(str(data), str(data), str(data), batch_size=args.questions)
    trainer.fit(module, questions)
    peak = (
        torch.cuda.max_memory_allocated()
        if on_gpu
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    )
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    found = {"device": device, "how": args.how, "peak_bytes": peak, "seconds": timer.seconds}
    print(json.dumps(found | planned(args, module), indent=2))


if __name__ == "__main__":
    main()
