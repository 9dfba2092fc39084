"""What `research plan` says of the memory of a run, against the peak of a real one on this CPU.

    python benchmarks/plan_check.py            # every case, each in a process of its own
    python benchmarks/plan_check.py --case full

A model with random weights learns for two iterations on the built-in world; most responses are
as long as they may be. Measured is how far the resident set grows above what the imports take,
with an allocator that gives back what is freed (``MALLOC_MMAP_THRESHOLD_``): glibc keeps some of it
otherwise, which no plan can know. Exit status 1 says that a peak is off by more than 15 %.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import SamplingParams
from research_rl.envs.retrieval.index.estimate import held_now
from research_rl.envs.synthetic.world import builtin_world
from research_rl.trainers.data import QuestionDataModule
from research_rl.trainers.module import ReSearchModule
from research_rl.trainers.plan.memory import memory_of
from research_rl.trainers.plan.sizes import Sizes, counted
from research_rl.trainers.settings.options import EnvConfig, Updates
from research_rl.trainers.warmstart.demonstrations import TAGS, WORDS
from research_rl.trainers.warmstart.tiny_model import word_tokenizer


@dataclass(frozen=True)
class Case:
    """One run: a shape of Qwen2 and the settings that cost memory."""

    hidden: int
    layers: int
    vocabulary: int
    response: int
    questions: int = 2
    group: int = 4
    micro_tokens: int = 8192
    lora: bool = False
    checkpointing: bool = False

    @property
    def shape(self) -> Qwen2Config:
        """The model's config."""
        return Qwen2Config(
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 8 // 3 // 64 * 64,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=max(1, self.hidden // 256),
            vocab_size=self.vocabulary,
            tie_word_embeddings=False,
            max_position_embeddings=4096,
        )


BAR = 0.15
"""How far a peak may be off."""
CASES = {
    "full": Case(hidden=768, layers=12, vocabulary=8192, response=24, group=2),
    "lora": Case(hidden=768, layers=12, vocabulary=8192, response=24, group=2, lora=True),
    "activations": Case(hidden=256, layers=8, vocabulary=8192, response=256),
    "checkpointing": Case(hidden=256, layers=8, vocabulary=8192, response=256, checkpointing=True),
}


def policy_config(case: Case, folder: Path) -> PolicyConfig:
    """Write the model; return how the run loads it."""
    questions, _ = builtin_world()
    words = dict.fromkeys(word for q in questions for word in q.text.split())
    tokenizer = word_tokenizer([*TAGS, *WORDS, *words])
    shape = case.shape
    shape.eos_token_id = tokenizer.eos_token_id
    shape.pad_token_id = tokenizer.pad_token_id
    LMPolicy(Qwen2ForCausalLM(shape), tokenizer).save_pretrained(folder)
    lora = LoraConfig() if case.lora else None
    return PolicyConfig(str(folder), lora=lora, gradient_checkpointing=case.checkpointing)


def sizes_of_case(case: Case, policy: PolicyConfig, prompt: int, response: int) -> Sizes:
    """What the plan starts from."""
    return replace(
        counted(policy, case.shape),
        questions=case.questions,
        group=case.group,
        micro_tokens=case.micro_tokens,
        prompt=prompt,
        response=response,
        mean_response=response,
        sampled=1.0,
    )


def child(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case; return planned and measured bytes."""
    torch.set_num_threads(1)
    policy = PolicyConfig(
        str(folder / "policy"),
        lora=LoraConfig() if case.lora else None,
        gradient_checkpointing=case.checkpointing,
    )
    before = held_now()
    module = ReSearchModule(
        policy,
        env=EnvConfig(top_k=1, prompt="{prompt}"),
        sampling=SamplingParams(case.response),
        updates=Updates(case.group, micro_batch_tokens=case.micro_tokens),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
    )
    data = str(folder / "questions.jsonl")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(module, QuestionDataModule(data, data, data, batch_size=case.questions))
    measured = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    prompt = max(len(r.sequence.prompt_ids) for r in module.train_rollouts)
    lengths = [len(r.sequence.response_ids) for r in module.train_rollouts]
    response = round(sum(lengths) / len(lengths))
    plan = memory_of(sizes_of_case(case, policy, prompt, response), on_cpu=True)
    return {"measured": measured, "planned": plan.peak, "lengths": lengths, "parts": vars(plan)}


def measure(name: str) -> dict[str, Any]:
    """Run a case in a process of its own, over a model that another process has written."""
    with tempfile.TemporaryDirectory() as folder:
        policy_config(CASES[name], Path(folder) / "policy")
        rows = (
            {"id": q.id, "question": q.text, "golden_answers": list(q.answers)}
            for q in builtin_world()[0][:8]
        )
        file = Path(folder) / "questions.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, __file__, "--child", name, "--folder", folder],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 18)},
        )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Print a table of planned and measured peaks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(CASES[args.child], args.folder)))
        return
    print("| case | planned MB | measured MB | off |\n|---|---|---|---|")
    missed = []
    for name in args.case or CASES:
        found = measure(name)
        off = found["planned"] / found["measured"] - 1
        planned, measured = found["planned"] / 1e6, found["measured"] / 1e6
        print(f"| {name} | {planned:.0f} | {measured:.0f} | {off:+.1%} |", flush=True)
        print(found["parts"], file=sys.stderr)
        missed += [name] if abs(off) > BAR else []
    if missed:
        raise SystemExit(
            f"a peak must be within {BAR:.0%} of the plan, got more: {', '.join(missed)}"
        )


if __name__ == "__main__":
    main()
