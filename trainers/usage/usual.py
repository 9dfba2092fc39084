"""The options that are used most, in a line each, and an example of each command."""

from __future__ import annotations

from typing import NamedTuple


class Opening(NamedTuple):
    """The beginning of a command's help.

    Args:
        does: what the command does, in a sentence.
        examples: command lines, each with a word about it or "".
        most_used: options, each with what stands for its value and a line about it.
    """

    does: str
    examples: tuple[tuple[str, str], ...]
    most_used: tuple[tuple[str, str, str], ...]


_CONFIG = ("config", "NAME", "a shipped config or a YAML file; several are merged, the last wins")
_FOLDER = ("trainer.default_root_dir", "DIR", "the run's folder: everything is written there")
_MODEL = ("model.policy.model", "MODEL", "folder or Hugging Face id of the model")
_INDEX = ("model.env.index", "DIR", "folder of the search index; none is a built-in world")
_SEARCHES = ("model.env.max_searches", "N", "searches that an episode may make; null is no limit")
_PROTOCOL = ("model.env.protocol", "NAME", "dialect of the turns: research, search_r1, hermes, ...")
_TOKENS = ("model.sampling.max_response_tokens", "N", "tokens of a response, results included")
_LR = ("model.optimizer.lr", "X", "learning rate")
_SEED = ("seed_everything", "N", "seed of all random numbers")
_CKPT = ("ckpt_path", "FILE", "last, best, or a file")
_THREADS = ("torch_threads", "N", "CPU threads of torch and FAISS")
_OVERWRITE = ("overwrite", "", "begin anew in a folder that holds a run; it is replaced")
_LOOK = (
    *(_CONFIG, _CKPT, _FOLDER, _MODEL, _INDEX),
    ("model.env.top_k", "N", "passages that a search returns"),
    *(_SEARCHES, _PROTOCOL, _TOKENS),
    ("model.validation_sampling.temperature", "T", "0 is greedy"),
)
_ASKED = (
    ("data.val_batch_size", "N", "questions played at once"),
    *(_SEED, _THREADS),
)

OPENINGS = {
    "fit": Opening(
        "Train a policy by reinforcement learning: roll out, reward, update.",
        (
            ("research fit --config quickstart", "minutes on a laptop, offline"),
            ("research fit --config quickstart --data.batch_size 8", "one value changed"),
            ("research fit --config small --config algorithm/dapo", "two configs merged"),
            ("research fit --config quickstart --ckpt_path last", "go on with a stopped run"),
        ),
        (
            *(_CONFIG, _FOLDER),
            ("trainer.max_steps", "N", "optimizer steps; -1 is no limit"),
            _MODEL,
            _INDEX,
            ("data.train", "FILE", "questions to train on; data.val: to validate with"),
            ("data.batch_size", "N", "questions of an iteration"),
            ("model.updates.group_size", "N", "rollouts of each question"),
            ("model.algorithm", "CLASS", "learning rule: GRPO, PPO, ..., or my_file.MyRule"),
            _LR,
            ("model.env.reward", "NAME", "default, paper, em, ..., or my_file.my_reward"),
            *(_SEARCHES, _PROTOCOL, _TOKENS, _SEED),
            ("ckpt_path", "FILE", "go on from last, best, or a file"),
            _OVERWRITE,
        ),
    ),
    "validate": Opening(
        "Score the validation questions with the weights of a run.",
        (("research validate --config quickstart --ckpt_path best", ""),),
        (
            *_LOOK,
            ("data.val", "FILE", "questions"),
            ("data.limit_val", "N", "the first ones"),
            *_ASKED,
        ),
    ),
    "test": Opening(
        "Score the test questions with the weights of a run.",
        (("research test --config quickstart --ckpt_path best", ""),),
        (
            *_LOOK,
            ("data.test", "FILE", "questions"),
            ("data.limit_test", "N", "the first ones"),
            *_ASKED,
        ),
    ),
    "predict": Opening(
        "Answer the test questions into predict/predictions.jsonl of the run's folder.",
        (("research predict --config quickstart --ckpt_path best", ""),),
        (
            *_LOOK,
            ("data.test", "FILE", "questions"),
            ("data.limit_test", "N", "the first ones"),
            *_ASKED,
        ),
    ),
    "sft": Opening(
        "Imitate demonstrations, before reinforcement learning.",
        (
            ("research collect --config small_cpu --from gold --out demos", ""),
            ("research sft --config small_cpu --data.train demos/rollouts.jsonl", ""),
        ),
        (
            *(_CONFIG, _FOLDER),
            ("trainer.max_steps", "N", "optimizer steps; -1 is no limit"),
            _MODEL,
            ("data.train", "FILE", "demonstrations, of research collect"),
            ("data.val", "FILE", "questions to validate with"),
            ("data.batch_size", "N", "demonstrations of a step"),
            ("data.limit_train", "N", "only so many demonstrations, the first ones"),
            ("model.updates.micro_batch_tokens", "N", "tokens in one pass: less takes less memory"),
            _LR,
            *(_INDEX, _SEARCHES, _PROTOCOL, _TOKENS, _SEED),
            ("ckpt_path", "FILE", "go on from last, best, or a file"),
            _OVERWRITE,
        ),
    ),
    "evaluate": Opening(
        "Compare methods on data sets: rows, a card, figures and a page.",
        (
            ("research evaluate --config evaluate/quickstart --run runs/quickstart", ""),
            ("research evaluate --config mine.yaml --dry_run", ""),
        ),
        (
            ("config", "NAME", "a shipped config (evaluate/...) or a YAML file"),
            ("run", "DIR", "folder of a run, whose weights are evaluated"),
            ("out", "DIR", "folder of the rows, the card, the figures and the page"),
            ("index", "DIR", "index that is searched where a data set names none"),
            ("top_k", "N", "passages of a search"),
            ("limit", "N", "questions of each data set, the first ones"),
            ("only", "NAMES", "cells whose data set, model or method holds one of these"),
            ("protocol", "NAME", "dialect of models that name none"),
            ("temperature", "T", "0 is greedy"),
            ("seed", "N", "of sampled texts"),
            ("batch_size", "N", "questions asked together"),
            ("resamples", "N", "of the bootstrap and the permutation test"),
            ("title", "TEXT", "heading of the card and the page"),
            ("torch_threads", "N", "CPU threads of torch and FAISS"),
            ("dry_run", "", "check everything, list what would be asked, then stop"),
        ),
    ),
}
"""The beginning of the help of each command."""
