"""Folders and files of a stranger, each with something that would touch a file if it were run.

Each function of HOSTILE takes an empty folder and the file to touch, and returns what a user would
name at the command line.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
import yaml
from doubles.tiny_run import write_policy

from research_rl.envs.retrieval.index.build import build_index
from research_rl.envs.types import Reward
from research_rl.trainers.lightning_internals import sharded_metadata
from research_rl.trainers.recorder.records import Record, Records

SECRET = "RESEARCH_TEST_SECRET"
"""An environment variable that a stranger would like to read."""
MODULE = "theirs_in_the_current_folder"
"""A module that touches the file when it is imported."""


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> Any:
        return os.open, (self.file, os.O_CREAT | os.O_WRONLY)


def write_module(folder: Path, ran: Path) -> None:
    """Write the module that a stranger's class path names."""
    (folder / f"{MODULE}.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass E: ...\n"
    )


def pickled(folder: Path, ran: Path) -> Path:
    """A pickle, as a file of any name."""
    file = folder / "theirs.ckpt"
    file.write_bytes(pickle.dumps(Payload(ran)))
    return file


def pickled_gz(folder: Path, ran: Path) -> Path:
    """A pickle behind gzip, by its name a question file."""
    file = folder / "train.jsonl.gz"
    file.write_bytes(gzip.compress(pickle.dumps(Payload(ran))))
    return file


def pickled_parquet(folder: Path, ran: Path) -> Path:
    """A pickle that is called a table."""
    file = folder / "train.parquet"
    file.write_bytes(pickle.dumps(Payload(ran)))
    return file


def checkpoint(folder: Path, ran: Path) -> Path:
    """What torch.save makes of a payload, in a run's folder."""
    run(folder, ran)
    file = folder / "checkpoints" / "best.ckpt"
    torch.save({"state_dict": Payload(ran), "callbacks": {"a": Payload(ran)}}, file)
    return file


def shards(folder: Path, ran: Path) -> Path:
    """A checkpoint in shards whose list of tensors is a payload."""
    run(folder, ran)
    place = folder / "checkpoints" / "best.ckpt"
    place.unlink(missing_ok=True)
    dcp.save({"state_dict": {"w": torch.arange(4.0)}}, checkpoint_id=place, no_dist=True)
    torch.save({"iteration": 1}, place / sharded_metadata())
    (place / ".metadata").write_bytes(pickle.dumps(Payload(ran)))
    return place


def model_with_code(folder: Path, ran: Path) -> Path:
    """A model that brings a module."""
    write_policy(folder)
    config = json.loads((folder / "config.json").read_text())
    names = (
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
    )
    config |= {"model_type": "theirs", "auto_map": dict.fromkeys(["AutoConfig", *names], "code.E")}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "E", "auto_map": {"AutoTokenizer": ["code.E", "code.E"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    write_module(folder, ran)
    (folder / f"{MODULE}.py").rename(folder / "code.py")
    return folder


def model_with_pickle(folder: Path, ran: Path) -> Path:
    """A model whose weights are a pickle."""
    write_policy(folder)
    (folder / "model.safetensors").unlink()
    torch.save(Payload(ran), folder / "pytorch_model.bin")
    return folder


def adapter(folder: Path, ran: Path) -> Path:
    """An adapter whose config names a module, and whose weights are a pickle."""
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    config |= {"megatron_config": {"x": 1}, "megatron_core": MODULE}
    config |= {"base_model_name_or_path": str(folder), "auto_mapping": {"parent_library": MODULE}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save(Payload(ran), folder / "adapter_model.bin")
    return folder


def run(folder: Path, ran: Path, **changes: Any) -> Path:
    """A run's folder without guile, but for ``changes``: ``model__engine={"class_path": ...}``."""
    policy = folder / "policy"
    write_policy(policy)
    questions = folder / "questions.jsonl"
    questions.write_text('{"id": "q", "question": "Who?", "golden_answers": ["I"]}\n')
    config: dict[str, Any] = {
        "trainer": {"default_root_dir": str(folder), "accelerator": "cpu", "max_steps": 1},
        "model": {
            "policy": {"model": str(policy)},
            "env": {"index": None, "top_k": 2, "max_searches": 2, "prompt": "base"},
            "sampling": {"max_response_tokens": 8},
            "updates": {"group_size": 2},
            "engine": {"class_path": "research_rl.agents.engines.CachedEngine"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        },
        "data": dict.fromkeys(("train", "val", "test"), str(questions)) | {"batch_size": 1},
    }
    for name, value in changes.items():
        *places, last = name.split("__")
        section = config
        for place in places:
            section = section.setdefault(place, {})
        section[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "checkpoints").mkdir()
    torch.save({"state_dict": {}, "iteration": 1}, folder / "checkpoints" / "best.ckpt")
    (folder / "metrics.csv").write_text("step\n0\n")
    said: dict[str, Any] = {"question": {"id": "q", "text": "Who?", "answers": ["I"]}}
    said["question"]["metadata"] = {}
    said |= {"seed": 0, "prompt_ids": [1, 2], "response_ids": [3], "sampled": [1]}
    said |= {"logprobs": [-0.1], "turns": ["nonsense"], "queries": [], "passage_ids": []}
    said |= {"reward": vars(Reward(0.0)), "advantage": 0.5, "finish_reason": "no_answer"}
    Records(folder / "records").write(0, 0, [Record(**said)])
    return folder


def run_with_class(folder: Path, ran: Path) -> Path:
    """A run whose engine is a class in the current folder."""
    return run(folder, ran, model__engine={"class_path": f"{MODULE}.E"})


def run_with_protocol(folder: Path, ran: Path) -> Path:
    """A run whose protocol is a class in the current folder."""
    return run(folder, ran, model__env__protocol={"class_path": f"{MODULE}.E"})


def run_with_term(folder: Path, ran: Path) -> Path:
    """A run whose reward has a term that is a class in the current folder."""
    terms = {"answer": 1.0, "mine": {"class_path": f"{MODULE}.E"}}
    return run(folder, ran, model__env__reward={"terms": terms})


def model_with_protocol(folder: Path, ran: Path) -> Path:
    """A model that is to be asked in a protocol of the current folder."""
    write_policy(folder)
    named = {"protocol": {"class_path": f"{MODULE}.E"}, "prompt": "base"}
    (folder / "research_rl.json").write_text(json.dumps(named))
    return folder


def run_with_environment(folder: Path, ran: Path) -> Path:
    """A run whose environment gymnasium would import a module for."""
    return run(folder, ran, model__env__id=f"{MODULE}:E-v0")


def run_with_resolver(folder: Path, ran: Path) -> Path:
    """A run that reads a secret into the address of its index."""
    return run(folder, ran, model__env__index="http://127.0.0.1:9/${oc.env:" + SECRET + "}")


def run_with_code(folder: Path, ran: Path) -> Path:
    """A run whose model brings code, and which says that it may be run."""
    run(folder, ran, model__policy__trust_remote_code=True)
    shutil.rmtree(folder / "policy")
    (folder / "policy").mkdir()
    model_with_code(folder / "policy", ran)
    return folder


def run_with_kernel(folder: Path, ran: Path) -> Path:
    """A run that wants a kernel of the Hub, which is code."""
    return run(folder, ran, model__policy__attn_implementation="theirs/kernel")


def run_with_tag(folder: Path, ran: Path) -> Path:
    """A run whose config has YAML build an object."""
    run(folder, ran)
    text = f"!!python/object/apply:os.mknod [{str(ran)!r}]"
    with (folder / "config.yaml").open("a") as file:
        file.write(f"seed_everything: {text}\n")
    return folder


def _index(folder: Path, kind: str = "dense", **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    corpus = folder.parent / f"{folder.name}.corpus.jsonl"
    corpus.write_text('{"id": "1", "contents": "Oslo\\nOslo is a city."}\n')
    build_index(corpus, folder, kind=kind, overwrite=True, **options)
    return folder


def _objects(ran: Path) -> Any:
    held = np.empty((1, 2), dtype=object)
    held[:] = Payload(ran)
    return held


def index_with_objects(folder: Path, ran: Path) -> Path:
    """An index whose arrays are pickles: the offsets, and the sample by which it is tuned."""
    index = _index(folder / "index")
    np.save(index / "offsets.npy", _objects(ran), allow_pickle=True)
    np.savez(index / "sample.npz", queries=_objects(ran), nearest=_objects(ran), k=_objects(ran))
    return index


def index_with_vectors(folder: Path, ran: Path) -> Path:
    """An index whose vectors, and what the encoder learned, are pickles."""
    index = _index(folder / "index")
    for file in index.rglob("*"):
        if file.suffix not in (".json", ".npy"):
            file.write_bytes(pickle.dumps(Payload(ran)))
    return index


def index_with_words(folder: Path, ran: Path) -> Path:
    """A BM25 index whose arrays are pickles."""
    index = _index(folder / "index", "bm25")
    for file in (index / "bm25").glob("*.npy"):
        np.save(file, _objects(ran), allow_pickle=True)
    return index


def index_with_code(folder: Path, ran: Path) -> Path:
    """An index whose encoder is a model that brings code."""
    index, model = _index(folder / "index"), folder / "model"
    model.mkdir()
    model_with_code(model, ran)
    manifest = json.loads((index / "manifest.json").read_text())
    manifest["encoder"] = {"name": str(model), "settings": {"pooling": "mean", "normalize": True}}
    manifest["encoder"]["settings"] |= {"query_prefix": "", "passage_prefix": "", "max_length": 16}
    (index / "manifest.json").write_text(json.dumps(manifest))
    return index


def data_set(folder: Path, ran: Path) -> Path:
    """A data set with a script of its own, in the layout of save_to_disk."""
    write_module(folder, ran)
    (folder / f"{MODULE}.py").rename(folder / f"{folder.name}.py")
    (folder / "dataset_info.json").write_text(json.dumps({"builder_name": MODULE}))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    content = io.BytesIO()
    torch.save(Payload(ran), content)
    (folder / "a.arrow").write_bytes(content.getvalue())
    return folder


HOSTILE: dict[str, Callable[[Path, Path], Path]] = {
    make.__name__: make
    for make in (
        *(pickled, pickled_gz, pickled_parquet, checkpoint, shards, data_set, adapter),
        *(model_with_code, model_with_pickle, run_with_class, run_with_environment, run_with_tag),
        *(run_with_resolver, run_with_code, run_with_kernel, run_with_protocol),
        run_with_term,
        model_with_protocol,
        *(index_with_objects, index_with_vectors, index_with_words),
        index_with_code,
    )
}
"""Every kind, by name."""


def make_all(folder: Path) -> dict[str, Path]:
    """Make each kind in a folder of its name; ``ran`` is the file that they would touch."""
    made = {"ran": folder / "ran"}
    for name, make in HOSTILE.items():
        (folder / name).mkdir()
        made[name] = make(folder / name, folder / "ran")
    return made
