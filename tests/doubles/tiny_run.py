"""A run of seconds for tests of the command line: random weights, a few questions, few tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from research_rl.agents.policy.loading import PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.envs.synthetic.world import builtin_world
from research_rl.envs.types import Question
from research_rl.trainers.warmstart.demonstrations import TAGS, WORDS
from research_rl.trainers.warmstart.tiny_model import TinyModelConfig, tiny_model, word_tokenizer


def write_policy(folder: Path) -> Path:
    """Save a model with random weights that knows the built-in world's words."""
    questions, _ = builtin_world()
    words = dict.fromkeys(word for q in questions for word in q.text.split())
    tokenizer = word_tokenizer([*TAGS, *WORDS, *words])
    shape = TinyModelConfig(hidden_size=32, num_layers=1, num_heads=2)
    LMPolicy(tiny_model(tokenizer, shape, seed=0), tokenizer).save_pretrained(folder)
    return folder


def write_checkpoint(file: Path, policy: Path) -> Path:
    """Save a policy's weights as a run would, with nothing else of one."""
    weights = LMPolicy.from_config(PolicyConfig(str(policy))).state_dict()
    state = {"state_dict": {f"policy.{n}": x for n, x in weights.items()}, "iteration": 1}
    torch.save(state, file)
    return file


def write_questions(file: Path, questions: Sequence[Question]) -> Path:
    """Save questions as FlashRAG JSONL."""
    rows = ({"id": q.id, "question": q.text, "golden_answers": list(q.answers)} for q in questions)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_config(folder: Path) -> Path:
    """Write policy, questions and a config for two iterations with a validation after each."""
    questions = builtin_world()[0][:6]
    data = str(write_questions(folder / "questions.jsonl", questions))
    config = {
        "seed_everything": 3,
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": "runs/tiny",
            "max_steps": 2,
            "val_check_interval": 1,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "CSVLogger",
                "init_args": {
                    "save_dir": "${trainer.default_root_dir}",
                    "name": "",
                    "version": "",
                    "flush_logs_every_n_steps": 1,
                },
            },
            "callbacks": [{"class_path": "RunCheckpoint"}],
        },
        "model": {
            "policy": {"model": str(write_policy(folder / "policy"))},
            "sampling": {"max_response_tokens": 12},
            "updates": {"group_size": 2},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
            "seed": "${seed_everything}",
        },
        "data": {"train": data, "val": data, "test": data, "batch_size": 2},
        "torch_threads": 1,
    }
    file = folder / "tiny.yaml"
    file.write_text("# A run of seconds.\n" + yaml.safe_dump(config), encoding="utf-8")
    return file
