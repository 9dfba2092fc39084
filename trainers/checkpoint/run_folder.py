"""The folder of a run: what of an earlier run is in it, and the config that is saved there.

A saved config keeps references such as ``${trainer.default_root_dir}/world``, so that it still
works after the folder is renamed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

_REFERENCE = re.compile(r"\$\{(\.+)([^}.][^}]*)\}")
_OF_OPTIMIZER = ("model.optimizer", "model.lr_scheduler")
_OF_EXAM = (
    *("data.val", "data.limit_val", "data.max_prompt_tokens", "model.validation_sampling"),
    *("model.env", "model.policy.chat_template"),
)
_OF_NO_EXAM = ("model.env.index", "model.env.on_retriever_error", "model.policy.chat_template.date")
Place = tuple[str | int, ...]


def run_in(folder: Path) -> str:
    """Return what a folder holds of a run that would be overwritten, "" if it holds none.

    Checkpoints count, and training steps in ``metrics.csv``.
    """
    found = [f"checkpoints/{p.name}" for p in sorted((folder / "checkpoints").glob("*.ckpt"))]
    metrics = folder / "metrics.csv"
    if metrics.is_file():
        with metrics.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = csv.DictReader(file)
            trained = [row for row in rows if row.get("train/reward") or row.get("train/nll")]
        if trained:
            found.insert(0, f"metrics.csv with {len(trained)} training steps")
    return ", ".join(found)


def changes(before: str, now: str, goes_on: bool = True) -> list[str]:
    """Return with what other options of model and data a run goes on, as "option: before -> now".

    Each is in force as it is said: where the checkpoint has a part in it, the line says which.
    Options of optimizer and scheduler are not among them; ``ResumedOptimizer`` speaks of those.

    Args:
        before: YAML of a run's config.
        now: YAML of the config with which it would go on.
        goes_on: whether it trains on. Else a policy is asked: what the checkpoint has a part in is
            not said, and neither is an option that was not known when the run began.
    """
    old, new = (dict(_options(resolved(text), "")) for text in (before, now))
    names = [
        name
        for name in {**old, **new}
        if name.startswith(("model.", "data.")) and not name.startswith(_OF_OPTIMIZER)
    ]
    return [
        f"{n}: {old.get(n)} -> {new.get(n)}{_part_of_checkpoint(n, new) if goes_on else ''}"
        for n in names
        if old.get(n) != new.get(n) and (goes_on or n in old)
    ]


def _part_of_checkpoint(name: str, new: dict[str, Any]) -> str:
    """What a checkpoint keeps of an option that is another one now; "" for nothing."""
    if name in ("model.policy.model", "model.policy.revision"):
        frozen = any(n.startswith("model.policy.lora.") for n in new)
        if frozen:
            return " (the adapter is the checkpoint's; below it must be the weights it learned on)"
        return " (the trained weights are the checkpoint's; all else of the model comes from there)"
    control = f"{name.removesuffix('kl_coef')}kl_control."
    if name.endswith(".kl_coef") and any(n.startswith(control) for n in new):
        return " (times what kl_control has made of it so far)"
    if _is_of_exam(name, new):
        return " (a best score of another exam is forgotten, if the checkpoint says its exam)"
    if name.startswith("data.") and not name.startswith(("data.world", "data.val", "data.test")):
        return " (the run goes on behind the questions that it has asked)"
    return ""


def _is_of_exam(name: str, new: dict[str, Any]) -> bool:
    """Whether an option decides how the policy is validated; see exam.py."""
    if name.startswith("model.sampling."):
        field = name.removeprefix("model.sampling.")
        return field != "temperature" and new.get(f"model.validation_sampling.{field}") is None
    return _within(name, _OF_EXAM) and not _within(name, _OF_NO_EXAM)


def _within(name: str, sections: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{section}.") for section in sections)


def resolved(text: str) -> Any:
    """Return what a config says, its ``${...}`` replaced as far as they lead anywhere."""
    config = yaml.safe_load(text)
    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except (OmegaConfBaseException, ValueError):
        return config


def _options(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _options(inner, f"{name}.{key}" if name else str(key))
    elif name.endswith("class_path") and str(value).startswith("research_rl."):
        yield (
            name,
            str(value).rpartition(".")[2],
        )  # a class of ours may have moved; names are unique
    else:
        yield name, value


def with_references(resolved: str, unresolved: str) -> str:
    """Return a config with its ``${...}`` put back, as YAML.

    Args:
        resolved: YAML without any reference.
        unresolved: YAML of the same config in which references still stand, relative to their
            places, as jsonargparse keeps them.

    A config that does not resolve to ``resolved`` is not the same one: then ``resolved`` is
    returned as it is.
    """
    values, references = yaml.safe_load(resolved), yaml.safe_load(unresolved)
    if not isinstance(values, dict) or not isinstance(references, dict):
        return resolved
    restored = _restored(values, references, ())
    try:
        again = OmegaConf.to_container(OmegaConf.create(restored), resolve=True)
    except OmegaConfBaseException:
        return resolved
    if again != values:
        return resolved
    return str(yaml.safe_dump(restored, sort_keys=False, allow_unicode=True))


def _restored(value: Any, reference: Any, place: Place) -> Any:
    if isinstance(value, dict) and isinstance(reference, dict):
        return {k: _restored(v, reference.get(k), (*place, k)) for k, v in value.items()}
    if isinstance(value, list) and isinstance(reference, list) and len(value) == len(reference):
        both = enumerate(zip(value, reference, strict=True))
        return [_restored(v, r, (*place, i)) for i, (v, r) in both]
    if isinstance(reference, str) and "${" in reference:
        return _REFERENCE.sub(_from_root(place), reference)
    return value


def _from_root(place: Place) -> Callable[[re.Match[str]], str]:
    def absolute(match: re.Match[str]) -> str:
        base = place[: len(place) - len(match[1])]
        return "${" + ".".join([*map(str, base), match[2]]) + "}"

    return absolute
