"""The models of an evaluation, each loaded once and shared by the methods that run on it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from research_rl.agents.engines import engine_for
from research_rl.agents.methods import Agent, LocalGenerator
from research_rl.agents.policy import LMPolicy, PolicyConfig, WeightDtype
from research_rl.envs.protocols import Protocol
from research_rl.envs.system import digest_stamp
from research_rl.trainers.checkpoint import (
    base_files,
    find_checkpoint,
    load_weights,
    policy_config,
)
from research_rl.trainers.evaluate.config import Method, ModelConfig
from research_rl.trainers.evaluate.named import PROVIDED
from research_rl.trainers.evaluate.sources import Source
from research_rl.trainers.settings import (
    EnvConfig,
    PromptParts,
    Stamp,
    asked_as,
    protocol_of,
    read_policy_file,
    read_run_config,
    weight_files,
    with_trained_prompt,
)

_LIMITS = ("top_k", "max_searches", "max_response_tokens", "max_result_tokens")
_USUAL: Mapping[str, Any] = {"max_chars": EnvConfig().max_chars, "stop": None}
"""What a method does that takes no such argument."""
LOCAL_ONLY = ("policy", "engine")
"""Arguments that only a model in this process can provide."""


def run_checkpoint(config: ModelConfig) -> Path:
    """Return the checkpoint of a model that is given as a run.

    Raises:
        FileNotFoundError: the run has none.
    """
    assert config.run is not None
    return find_checkpoint(config.checkpoint, Path(config.run) / "checkpoints")


def model_identity(config: ModelConfig, formerly: Stamp | None = None) -> dict[str, Any]:
    """Return what identifies a model, to be kept in the settings of its rows.

    Weights on disk are identified by what is in their files, so that a copy of a run is the same
    model. To a run with a LoRA adapter belong those of its base. How they are run (device, slots)
    is not part of it.

    Args:
        formerly: how an earlier version identified a file, for what it wrote: it knew weights in
            safetensors alone, and no base of an adapter. None is what this version writes.
    """
    assert config.generator is None, "it is known by its settings"
    stamp = formerly or digest_stamp
    if config.run is not None:
        known = {"checkpoint": stamp(run_checkpoint(config)), "dtype": config.dtype}
        return known if formerly else known | _base_of(Path(config.run))
    name = str(config.model)
    folder = Path(name).expanduser()
    found = weight_files(folder)
    if formerly is not None:
        found = [path for path in found if path.suffix == ".safetensors"]
    return {"model": name, "files": [stamp(path) for path in found], "dtype": config.dtype}


def _base_of(run: Path) -> dict[str, Any]:
    """The base of a run's adapter, where it has one and its base is a folder."""
    if not (file := run / "config.yaml").is_file():
        return {}
    section = (read_run_config(file, run).get("model") or {}).get("policy") or {}
    if not section.get("lora") or "model" not in section:
        return {}
    found = base_files(PolicyConfig(str(section["model"])))
    return {"base": found} if found else {}


def time_stamp(path: Path) -> list[Any]:
    """Return name, size and time of change, by which 0.1.0 identified a file.

    Its rows know nothing else of their model.
    """
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def spoken(config: ModelConfig, usual: str | Protocol | None = None) -> dict[str, Any]:
    """Return in which ``protocol`` and with which ``prompt`` a model is to be asked.

    What the configuration leaves open, the run's config.yaml says, or the file beside exported
    weights; what nobody says is not there.

    Args:
        config: of the model.
        usual: the protocol where nobody names one; None is what a method is made with.

    Raises:
        TrustError: a folder names a protocol of another package, and nobody has granted that.
    """
    told = trained_as(config)
    found: dict[str, Any] = {name: told[name] for name in ("protocol", "prompt") if name in told}
    named = config.protocol
    if named is None and "protocol" not in found:
        named = usual
    if named is not None:
        found["protocol"] = protocol_of(named) if isinstance(named, str) else named
    if config.prompt is not None:
        own = config.prompt
        found["prompt"] = asdict(own) if isinstance(own, PromptParts) else own
    return found


def spoken_by(
    method: Method, config: ModelConfig, usual: str | Protocol | None = None
) -> dict[str, Any]:
    """Return what of ``spoken`` a method is given: all that its ``init_args`` do not say.

    A method that takes no protocol speaks none of them, and has prompts of its own.
    """
    if "protocol" not in inspect.signature(method.agent).parameters:
        return {}
    return {
        name: one for name, one in spoken(config, usual).items() if name not in method.init_args
    }


def trained_as(config: ModelConfig) -> dict[str, Any]:
    """Return what a run's config, or the file beside exported weights, says of how it is asked.

    The prompt of a run is that of the training, also where its file was changed since.

    Raises:
        TrustError: a folder names a protocol of another package, and nobody has granted that.
    """
    if config.run is not None:
        file = Path(config.run) / "config.yaml"
        if not file.is_file():
            return {}
        model = read_run_config(file, file.parent).get("model") or {}
        told = asked_as(model.get("env") or {}, file, model.get("sampling"))
        return with_trained_prompt(told, file.parent, file)
    if config.model is not None and Path(config.model).expanduser().is_dir():
        return read_policy_file(Path(config.model).expanduser())
    return {}


def other_limits(method: Method, config: ModelConfig, top_k: int) -> str | None:
    """Return in words which limits a method has that its model was not trained with.

    Args:
        method: asks the model; one that takes no protocol has limits of its own.
        config: of the model.
        top_k: passages of a search in this evaluation.
    """
    taken = inspect.signature(method.agent).parameters
    if "protocol" not in taken:
        return None
    others = []
    told = trained_as(config)
    for name, trained in told.items():
        if name in taken and name in (*_LIMITS, *_USUAL):
            usual = top_k if name == "top_k" else taken[name].default
        elif name in _USUAL:
            usual = _USUAL[name]
        else:
            continue
        asked = method.init_args.get(name, usual)
        if name == "stop":  # none means those of the protocol
            asked = told["protocol"].stops if asked is None else tuple(asked)
        if asked != trained:
            lost = "" if name in taken else " (which this method cannot take)"
            others.append(f"{name} {asked} in place of {trained}{lost}")
    return ", ".join(others) or None


class LoadedModel:
    """A loaded model, over which the agents of methods are made.

    Args:
        config: names it.
        usual: the protocol where nobody names one.

    Raises:
        FileNotFoundError: the model does not exist.
    """

    def __init__(self, config: ModelConfig, usual: str | Protocol | None = None) -> None:
        self.config, self._usual = config, usual
        self.provided: dict[str, Any] = {}
        if config.generator is not None:
            self.provided["generator"] = config.generator
        else:
            policy = _policy(config)
            engine = engine_for(policy, config.max_slots)
            generator = LocalGenerator(policy, engine)
            self.provided |= {"policy": policy, "engine": engine, "generator": generator}

    def agent(self, method: Method, source: Source, shared: Mapping[str, Any]) -> Agent:
        """Make a method's agent over this model and the data set's passages.

        Args:
            method: its class and ``init_args``, which override all other arguments.
            source: brings the retriever.
            shared: settings of all methods; those that the constructor has are passed.
        """
        given: dict[str, Any] = {
            **self.provided,
            **shared,
            **spoken_by(method, self.config, self._usual),
        }
        if source.has_retriever:
            given["retriever"] = source.retriever()
        wanted = inspect.signature(method.agent).parameters
        chosen = {name: given[name] for name in wanted if name in given}
        return method.agent(**{**chosen, **method.init_args})


def what_is_missing(method: Method, config: ModelConfig, source: Source) -> str | None:
    """Return what a method needs and the model or data set does not have; None if nothing."""
    parameters = inspect.signature(method.agent).parameters
    needed = {
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in method.init_args
    }
    if config.generator is not None and (lost := sorted(needed & {*LOCAL_ONLY})):
        return f"a model in this process (its {' and '.join(lost)}), not one on a server"
    searches = "retriever" in needed or {"retriever", "top_k"} <= parameters.keys()
    if searches and not source.has_retriever:
        return "something to search: name the index of the data set, or one for all"
    if lost := sorted(needed - {"retriever", *LOCAL_ONLY, *PROVIDED}):
        return f"init_args.{lost[0]}"
    return None


def _policy(config: ModelConfig) -> LMPolicy:
    if config.run is not None:
        checkpoint, run = run_checkpoint(config), Path(config.run)
        settings = policy_config(run / "config.yaml", run)
        policy = LMPolicy.from_config(settings)
        load_weights(policy, checkpoint, settings)
    else:
        policy = LMPolicy.from_config(
            PolicyConfig(
                str(config.model),
                dtype=cast(WeightDtype, config.dtype),
                attn_implementation=config.attn_implementation,
            )
        )
    policy.to(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    policy.requires_grad_(False).eval()
    return policy
