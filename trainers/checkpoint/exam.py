"""What a score was measured with: a run that goes on with another exam has no best score yet.

An F1 of 0.9 on easy questions would otherwise stay the best of a run that is asked hard ones since,
and ``best.ckpt`` would never be renewed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.cli import SaveConfigCallback

from research_rl.envs.questions import SPLIT_MARK, find_split
from research_rl.envs.system import digest_stamp
from research_rl.trainers.checkpoint.run_folder import resolved
from research_rl.trainers.settings import with_contents

Exam = dict[str, str]
"""By the name of an option what it was, in JSON."""
_VAL = ("validation", "dev", "val")  # as the data module looks for them
_OF_WORLD = ("num_people", "seed", "eval_hops", "num_val", "alias_share", "unanswerable_share")
_NOT_OF_ENV = ("index", "on_retriever_error")


def exam_of(trainer: pl.Trainer) -> Exam | None:
    """Return what the validation of a run is made with; every rank must call it.

    Files are known by their content, so that a run that was moved has the same exam.

    Returns:
        None where nobody can tell: the run has no config, for it was not begun by a command.
    """
    exam = None
    if trainer.is_global_zero and (config := _config_of(trainer)) is not None:
        exam = _exam(config, Path(trainer.default_root_dir))
    shared: Exam | None = trainer.strategy.broadcast(exam)
    return shared


def reward_of(trainer: pl.Trainer) -> Exam | None:
    """Return what the rewards of a run are made with, as ``exam_of`` does."""
    exam = exam_of(trainer)
    names = ("model.env.reward", "model.env.search_cost")
    return None if exam is None else {name: exam[name] for name in names if name in exam}


def differences(
    before: Mapping[str, str] | None, now: Mapping[str, str] | None, monitor: str = ""
) -> list[str]:
    """Return the names of the options that differ, of those that both know.

    Args:
        before: what it was.
        now: what it is.
        monitor: the metric whose values are compared; what a search costs changes a reward and no
            F1, and so do other weights of the terms of a reward.
    """
    if before is None or now is None:
        return []
    others = [name for name in now if name in before and before[name] != now[name]]
    if not monitor or monitor.endswith("reward"):
        return others
    terms = all('"terms":' in held.get("model.env.reward", "") for held in (before, now))
    unmoved = {"model.env.search_cost", *(["model.env.reward"] if terms else [])}
    return [name for name in others if name not in unmoved]


def _config_of(trainer: pl.Trainer) -> dict[str, Any] | None:
    everyone: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    saver = next((c for c in everyone if isinstance(c, SaveConfigCallback)), None)
    if saver is None:
        return None
    config = resolved(saver.parser.dump(saver.config, skip_unset=False))
    return config if isinstance(config, dict) else None


def _exam(config: Mapping[str, Any], root: Path) -> Exam:
    model, data, trainer = (config.get(name) or {} for name in ("model", "data", "trainer"))
    env = model.get("env") or {}
    exam = {f"model.env.{name}": env[name] for name in env if name not in _NOT_OF_ENV}
    if searched := sorted(_indexes(env.get("index")), key=str):
        exam["model.env.index"] = searched
    sampling, validated = model.get("sampling") or {}, model.get("validation_sampling") or {}
    for name in {**sampling, **validated}:
        own = validated.get(name, 0.0 if name == "temperature" else None)
        exam[f"model.validation_sampling.{name}"] = sampling.get(name) if own is None else own
    chat = (model.get("policy") or {}).get("chat_template") or {}
    exam["model.policy.chat_template"] = {name: chat[name] for name in chat if name != "date"}
    for name in ("val", "limit_val", "max_prompt_tokens"):
        exam[f"data.{name}"] = data.get(name)
    exam["data.val"] = _questions(data.get("val"))
    world = data.get("world")
    exam["data.world"] = world and {name: world[name] for name in _OF_WORLD if name in world}
    limit = trainer.get("limit_val_batches")
    whole = limit is None or (limit == 1.0 and isinstance(limit, float))
    exam["trainer.limit_val_batches"] = None if whole else [limit, data.get("val_batch_size")]
    return {name: json.dumps(_known(value, root), sort_keys=True) for name, value in exam.items()}


def _indexes(value: Any) -> Iterator[Any]:
    """What is in the index folders of a setting; a served index may have another url each day."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _indexes(inner)
    elif isinstance(found := with_contents(value, _size), dict) and "index" in found:
        yield found


def _questions(source: Any) -> Any:
    """A question file; of a folder, or of a source that names its split, the file with the split.

    The split is kept beside it: one file may hold several.
    """
    if not isinstance(source, str) or Path(source).is_file():
        return source
    place, mark, split = source.rpartition(SPLIT_MARK)
    folder = Path(place if mark else source)
    if not folder.is_dir():
        return [str(folder), split] if mark and folder.is_file() else source
    named = split if mark else find_split(folder, _VAL)
    files = sorted(str(file) for file in folder.iterdir() if file.is_file() and file.stem == named)
    return [*files, named] if files else source


def _known(value: Any, root: Path) -> Any:
    """A setting with that in it which tells it from another one, wherever it lies."""
    if isinstance(value, Mapping):
        short = {name: _known(inner, root) for name, inner in value.items()}
        if str(value.get("class_path", "")).startswith("research_rl."):  # it may have moved
            short["class_path"] = value["class_path"].rpartition(".")[2]
        return {str(name): inner for name, inner in short.items()}
    if isinstance(value, list | tuple):
        return [_known(inner, root) for inner in value]
    if not isinstance(value, str):
        return value if isinstance(value, bool | int | float | None) else str(value)
    if "://" in value:
        return "://"
    try:
        path = Path(value)
        if value and path.is_file():
            return digest_stamp(path)[1:]
        if value and path.exists() and path.resolve().is_relative_to(root.resolve()):
            return str(path.resolve().relative_to(root.resolve()))
    except (OSError, ValueError):  # a text that can be no name
        pass
    return value


def _size(path: Path) -> list[Any]:
    return [path.name, path.stat().st_size]
