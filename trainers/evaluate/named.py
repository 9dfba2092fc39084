"""Methods that a configuration names: their classes, and arguments of the right types."""

from __future__ import annotations

import inspect
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from research_rl.agents import methods
from research_rl.agents.methods import Agent
from research_rl.envs.system import did_you_mean
from research_rl.trainers.settings import OneLineParser, one_line, protocol_of, refuse_class

PROVIDED = (
    *("generator", "retriever", "policy", "engine", "protocol", "prompt"),
    *("top_k", "temperature", "seed"),
)
"""Arguments of an agent that the evaluation fills in, unless ``init_args`` does."""


def typed_arguments(agent: type[Agent], init_args: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the arguments, converted to the types that the constructor declares.

    Raises:
        ValueError: the constructor has no such argument, or a value is of another type.
    """
    taken = inspect.signature(agent).parameters
    for key in init_args:
        one_of(f"a key of {where}.init_args", key, taken)
    if not init_args:
        return {}
    required = {name for name, one in taken.items() if one.default is one.empty}
    # an argument that is missing is reported later, with the cell that needs it
    skip: Any = {*PROVIDED, *required} - {*init_args}
    parser = OneLineParser(exit_on_error=False)
    parser.add_class_arguments(agent, "args", skip=skip, fail_untyped=False, instantiate=False)
    try:
        parsed = parser.parse_object({"args": init_args})
    except ArgumentError as error:
        raise ValueError(f"{where}.init_args: {one_line(str(error))}") from error
    build = parser.instantiate
    made = vars(build(parsed).args)
    return {key: made[key] for key in init_args}


def find_agent(path: str, where: str) -> type[Agent]:
    """Return the class of a method: ``NaiveRAG`` for one of this package, or ``module.Class``.

    Raises:
        ValueError: there is none, or it is no Agent.
        TrustError: a config that came with a folder names a class of another package.
    """
    module, _, name = path.rpartition(".")
    ours: dict[str, type[Agent]] = {
        n: c for n, c in vars(methods).items() if _is_agent(c) and not inspect.isabstract(c)
    }
    if not module:
        one_of(f"{where}.class_path", name, ours)
        return ours[name]
    refuse_class(path, f"{where}.class_path")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{where}.class_path must be a class that imports, got {path!r} ({error}); "
            f"known: {', '.join(ours)}"
        ) from error
    if not _is_agent(found):
        raise ValueError(f"{where}.class_path must be an Agent, got {path!r}")
    agent: type[Agent] = found
    return agent


def _is_agent(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Agent)


def check_protocol(what: str, protocol: Any) -> None:
    """Refuse a protocol that is named and is none.

    Raises:
        ValueError: the message begins with ``what``.
    """
    if isinstance(protocol, str):
        try:
            protocol_of(protocol)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error


def one_of(what: str, name: Any, known: Iterable[str]) -> None:
    """Refuse an unknown name; the message suggests the nearest known one.

    Raises:
        ValueError: it is not among ``known``.
    """
    names: Sequence[str] = list(known)
    if name not in names:
        hint = did_you_mean(name, names)
        raise ValueError(f"{what} must be one of {', '.join(names)}, got {name!r}{hint}")
