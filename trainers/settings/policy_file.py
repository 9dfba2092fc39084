"""``research_rl.json`` beside exported weights: how the policy is to be asked.

It holds the protocol and the prompt that the policy was trained with, the limits of its searches
and what ended its turns::

    {"protocol": "hermes", "prompt": "instruct", "top_k": 5, "max_searches": null}

A folder without it, such as one of an earlier version or from the Hub, says nothing.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from research_rl.agents import SamplingParams
from research_rl.envs.protocols import (
    PROTOCOLS,
    RESEARCH,
    Prompt,
    Protocol,
    get_prompt,
    get_protocol,
)
from research_rl.envs.system import write_whole
from research_rl.trainers.settings.errors import UsageError
from research_rl.trainers.settings.options import EnvConfig, PromptParts
from research_rl.trainers.settings.shipped import OneLineParser
from research_rl.trainers.settings.trust import careful, distrust, refuse_class
from research_rl.trainers.settings.yaml_files import read_yaml

_NAMED = ("base", "instruct")
_COPYING = 60.0  # seconds: in a copied run the files were written in another order
log = logging.getLogger(__name__)

POLICY_FILE = "research_rl.json"
_NUMBERS = ("top_k", "max_searches", "max_chars")
_KEPT = ("protocol", "prompt", *_NUMBERS)
_TOKENS = ("max_response_tokens", "max_result_tokens")
_SAMPLED = (*_TOKENS, "stop")


def write_policy_file(
    folder: Path,
    env: EnvConfig | Mapping[str, Any],
    sampling: SamplingParams | Mapping[str, Any] | None = None,
) -> None:
    """Write how a policy is to be asked.

    Args:
        folder: of its weights.
        env: the environment that it was trained in, or that section of a config.
        sampling: how its rollouts were sampled, or that section; None leaves its limits and stop
            strings unsaid.
    """
    told = vars(env) if isinstance(env, EnvConfig) else env
    held = {name: told[name] for name in _KEPT if name in told}
    limits = (vars(sampling) if isinstance(sampling, SamplingParams) else sampling) or {}
    held |= {name: limits[name] for name in _SAMPLED if limits.get(name) is not None}
    held["protocol"] = _protocol_spec(held.get("protocol", "research"))
    prompt = _prompt_spec(held.get("prompt", "base"), held["protocol"])
    held |= {"prompt": prompt} if prompt is not None else {}
    if prompt is None:
        held.pop("prompt", None)
    write_whole(folder / POLICY_FILE, json.dumps(held, indent=2, ensure_ascii=False) + "\n")


def read_policy_file(folder: Path) -> dict[str, Any]:
    """Return what a policy's folder says of how it is to be asked; nothing without the file.

    Raises:
        UsageError: the file holds something else.
        TrustError: it names a protocol of another package, and nobody has granted that.
    """
    file = folder / POLICY_FILE
    told = _read(file)
    return asked_as(told, file, told) if file.is_file() else {}


def with_trained_prompt(
    told: Mapping[str, Any], run: Path, config: Path, exported: bool = False
) -> dict[str, Any]:
    """Return what a run's config says, with the prompt that its policy was trained with.

    A config may name the prompt's file, and that file may have been changed since. The text of the
    training stands beside the run's policy, and goes over it. Without that text the file is taken
    as it is now, with a warning if it is younger than the config.

    Args:
        told: the section ``model.env``, or what ``asked_as`` says of it.
        run: the run's folder.
        config: its config.yaml.
        exported: whether the weights beside that text are asked. Those of a checkpoint may be of a
            later fit, which has written the config anew and ended without an export.

    Raises:
        UsageError: the file beside the policy holds something else than an object.
    """
    given, protocol = told.get("prompt"), told.get("protocol")
    kept = _read(run / "policy" / POLICY_FILE).get("prompt")
    if not isinstance(kept, str | Mapping) or not (exported or _is_of(run, given, config)):
        _warn_of_changed_file(given, config)
        return dict(told)
    meant = _meant(kept, protocol)
    if given == kept or (meant is not None and meant == _meant(given or "base", protocol)):
        return dict(told)
    _warn_once(
        f"the prompt of {config} is no longer that of the training; "
        f"taken is the one that {run / 'policy' / POLICY_FILE} holds"
    )
    return {**told, "prompt": kept}


def _is_of(run: Path, prompt: Any, config: Path) -> bool:
    """Whether the text beside a policy is surely that of the prompt's file in the run's config."""
    if not isinstance(prompt, str) or prompt in _NAMED or "{prompt}" in prompt:
        return False  # the config itself holds the text
    with suppress(OSError):
        written = (run / "policy" / POLICY_FILE).stat().st_mtime
        return written > config.stat().st_mtime - _COPYING
    return False


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    told = read_yaml(file)
    if not isinstance(told, dict):
        raise UsageError(f"{file} must hold an object of JSON, got {type(told).__name__}")
    return told


def _meant(prompt: Any, protocol: Any) -> Prompt | None:
    """The prompt itself; None where its file is gone. A class that is not loaded tells no rules."""
    known = isinstance(protocol, Protocol) or protocol in [*PROTOCOLS]
    try:
        return get_prompt(prompt, protocol if known else RESEARCH)
    except (ValueError, OSError):
        return None


def _warn_of_changed_file(prompt: Any, config: Path) -> None:
    """Warn where a prompt's file was changed after the config that names it was written."""
    named = isinstance(prompt, str) and "{prompt}" not in prompt
    with suppress(OSError):  # a text, or a file that is gone: who needs it says so
        if named and Path(prompt).stat().st_mtime > config.stat().st_mtime:
            _warn_once(
                f"the prompt's file {prompt} was changed after {config} was written, and no "
                f"{POLICY_FILE} holds the text of the training: the policy may be asked otherwise "
                "than it was trained; put the former text back, or name it with prompt"
            )


@cache
def _warn_once(text: str) -> None:
    log.warning(text)


def asked_as(
    env: Mapping[str, Any], file: Path, sampling: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return protocol, prompt, limits and stop strings of the ``model.env`` section of a config.

    A section without ``protocol``, as earlier versions wrote it, means ``research``.

    Args:
        env: the section.
        file: the config, which may be somebody else's.
        sampling: the section ``model.sampling``; None leaves out limits of tokens and stop strings.

    Raises:
        UsageError: a part is of another kind than it must be.
        TrustError: it names a protocol of another package, and nobody has granted that.
    """
    held = {name: env[name] for name in _KEPT if env.get(name) is not None}
    given = sampling or {}
    held |= {name: given[name] for name in _SAMPLED if given.get(name) is not None}
    held["protocol"] = protocol_of(held.get("protocol", "research"), file)
    prompt = held.get("prompt")
    if not isinstance(prompt, str | Mapping | None):
        raise UsageError(f"prompt in {file} must be a text or a mapping, got {prompt!r}")
    for name in (*_NUMBERS, *_TOKENS):
        if not isinstance(held.get(name, 1), int):
            raise UsageError(f"{name} in {file} must be a number, got {held[name]!r}")
    if "stop" in held:
        stops = held["stop"]
        if not (isinstance(stops, list | tuple) and all(isinstance(one, str) for one in stops)):
            raise UsageError(f"stop in {file} must be a list of texts, got {stops!r}")
        held["stop"] = tuple(stops)
    return held


def protocol_of(spec: Any, file: Path | None = None) -> Protocol:
    """Return the protocol that a config names.

    Args:
        spec: a name, a dotted class path, or ``{class_path, init_args}``.
        file: the config, if it may be somebody else's; None where the user named the protocol.

    Raises:
        ValueError: there is no such protocol.
        TrustError: the file names a class of another package, and nobody has granted that.
    """
    if isinstance(spec, str) and (spec in PROTOCOLS or "." not in spec):
        return get_protocol(spec)
    given = {"class_path": spec} if isinstance(spec, str) else spec
    if not isinstance(given, Mapping):
        raise UsageError(f"protocol must be a name or a class_path, got {spec!r}")
    with careful(()):
        if file is not None:
            distrust(file)
            refuse_class(str(given.get("class_path")), "protocol")
        parser = OneLineParser(prog="research", exit_on_error=False)
        parser.add_argument("--protocol", type=Protocol)
        try:
            build: Any = parser.instantiate
            made = build(parser.parse_object({"protocol": given}))
        except Exception as error:
            where = "--protocol" if file is None else f"protocol in {file}"
            raise UsageError(f"{where} must name a Protocol, got {spec!r}: {error}") from error
    protocol: Protocol = made.protocol
    return protocol


def _protocol_spec(protocol: Any) -> Any:
    """A protocol as a config names it; that of an object, by its class and what it was made of."""
    if not isinstance(protocol, Protocol):
        return protocol
    if PROTOCOLS.get(protocol.name) == protocol:
        return protocol.name
    kind = type(protocol)
    taken = inspect.signature(kind).parameters
    given = {name: value for name, value in vars(protocol).items() if name in taken}
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}"} | (
        {"init_args": given} if given else {}
    )


def _prompt_spec(prompt: Any, protocol: Any) -> Any:
    """A prompt as a config gives it; that of a file in full, for the file stays behind."""
    if isinstance(prompt, PromptParts):
        prompt = asdict(prompt)
    if isinstance(prompt, Mapping):
        return {name: part for name, part in prompt.items() if part is not None}
    if not isinstance(prompt, str) or prompt in _NAMED or "{prompt}" in prompt:
        return prompt
    speaks = get_protocol(protocol) if isinstance(protocol, str) else "research"
    try:
        found = get_prompt(prompt, speaks)
    except (ValueError, OSError) as error:
        log.warning("the prompt %r is not kept beside the policy: %s", prompt, error)
        return None
    if not found.chat:
        return found.user
    parts = {"system": found.system, "user": found.user, "begins": found.begins}
    return {k: v for k, v in parts.items() if v is not None} | {"tools": bool(found.tools_text)}


__all__ = [
    "POLICY_FILE",
    "asked_as",
    "protocol_of",
    "read_policy_file",
    "with_trained_prompt",
    "write_policy_file",
]
