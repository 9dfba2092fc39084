"""Configs as Python values, and the words of a command line that say the same.

``command_words(["quickstart", {"data.seed": 8}])`` is ``["--config", "quickstart", "--config",
"data: {seed: 8}"]``. A class may stand where a config names one by its path.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, TypeAlias

import yaml  # type: ignore[import-untyped]

ConfigLike: TypeAlias = "str | PathLike[str] | Mapping[str, Any]"
"""A shipped config's name, a YAML file, or options: nested, or with dots in the outermost names."""


def command_words(configs: Iterable[ConfigLike]) -> list[str]:
    """Return the command line that merges these configs, the last one wins.

    Raises:
        TypeError: one is no config, or holds a value that YAML cannot.
    """
    words = []
    for config in configs:
        if isinstance(config, Mapping):
            text = yaml.safe_dump(_nested(config), sort_keys=False)
            words += ["--config", text]
        elif isinstance(config, str | PathLike):
            words += ["--config", str(config)]
        else:
            raise TypeError(
                "a config must be a shipped name, a file or a mapping of options, got "
                f"{type(config).__name__}"
            )
    return words


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as sections in sections: ``{"data.seed": 1}`` is ``{"data": {"seed": 1}}``.

    Further in a dot is a part of a name, such as that of a model.
    """
    made: dict[str, Any] = {}
    for name, value in options.items():
        *sections, last = str(name).split(".")
        one = {last: _plain(value, last)}
        for section in reversed(sections):
            one = {section: one}
        _add(made, one, "")
    return made


def _add(made: dict[str, Any], more: Mapping[str, Any], within: str) -> None:
    """Put options into others, sections into sections; of equal names the later one wins.

    Raises:
        TypeError: a name is a section in one and a value in the other.
    """
    for name, value in more.items():
        old = made.get(name)
        if name in made and isinstance(old, dict) != isinstance(value, dict):
            raise TypeError(f"{within}{name} must be a value or a section of options, got both")
        if isinstance(old, dict):
            _add(old, value, f"{within}{name}.")
        else:
            made[name] = value


def _plain(value: Any, name: str) -> Any:
    """A value as YAML has it; a class as the path by which it is imported."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, name) for one in value]
    if inspect.isclass(value):
        path = f"{value.__module__}.{value.__qualname__}"
        return path if name == "class_path" else {"class_path": path}
    if isinstance(value, PathLike):
        return str(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # NumPy's float64 is one, and YAML does not know it
    if value is None:
        return None
    raise TypeError(
        f"{name} must be a number, a text, a list, a mapping or a class, got "
        f"{type(value).__name__}; name a class, and its arguments as "
        "{'class_path': ..., 'init_args': {...}}"
    )
