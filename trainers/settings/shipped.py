"""Configs that ship with the package, found by name, and the parsers that read them.

``--config quickstart`` reads configs/quickstart.yaml. A config may name the one that it changes:
with ``base: research_7b`` on a line of its own, it is read as if ``--config research_7b`` stood
before it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from research_rl.envs.system import FAILED, did_you_mean, printable
from research_rl.envs.web import name_servers
from research_rl.trainers.settings.errors import TRACEBACK, UsageError, one_line
from research_rl.trainers.settings.moved import answer_for_moved_modules
from research_rl.trainers.settings.trust import came_with_a_run, distrust
from research_rl.trainers.settings.yaml_files import check_bounds, read_yaml

CONFIGS = Path(str(files("research_rl.configs")))
EVALUATION = "evaluate"
"""The folder of the configs that are for ``research evaluate`` alone."""
PROTOCOL_CONFIGS = "protocol"
"""The folder of the configs that set a protocol alone."""
_BASE = re.compile(r"^base:.*$", re.MULTILINE)


def shipped_configs(folder: str | None = None) -> list[str]:
    """Names of the configs in this package: ``quickstart``, ``algorithm/grpo``, ...

    Args:
        folder: those of one folder alone.
    """
    found = (p.relative_to(CONFIGS).with_suffix("") for p in CONFIGS.rglob("*.yaml"))
    return sorted(p.as_posix() for p in found if folder is None or p.parts[0] == folder)


def find_config(name: str) -> str:
    """Return the path that ``--config name`` means: a file here, else a shipped config.

    Raises:
        TypeError: neither is there (jsonargparse turns it into a usage error).
    """
    path = _shipped(name)
    if Path(name).is_file() or not path.resolve().is_relative_to(CONFIGS.resolve()):
        return name
    if path.is_file():
        return str(path)
    raise TypeError(f"no config {name!r}{_shipped_names(name)}")


def _shipped(name: str) -> Path:
    return CONFIGS / f"{name.removesuffix('.yaml')}.yaml"


def _shipped_names(name: str) -> str:
    known = shipped_configs()
    return f"{did_you_mean(name.removesuffix('.yaml'), known)} (shipped: {', '.join(known)})"


class ShippedConfigFile(ActionConfigFile):
    """``--config NAME`` where NAME is a file, a shipped config or YAML itself."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: Any) -> None:
        """Merge the config, behind its bases, into what was parsed so far."""
        is_yaml = isinstance(value, str) and ("\n" in value or ": " in value or "{" in value)
        known = value if is_yaml else find_config(str(value))
        if is_yaml:
            _check_text(value)
        is_file = not is_yaml and Path(known).is_file()
        parts: list[Any] = _with_bases(Path(known)) if is_file else [known]
        foreign = is_file and came_with_a_run(Path(known))
        for part in parts:
            if foreign and not Path(part).resolve().is_relative_to(CONFIGS.resolve()):
                distrust(part)
            else:
                name_servers(part.read_text(encoding="utf-8") if is_file else part)
            ActionConfigFile.apply_config(parser, cfg, dest, str(part))


class EvaluationConfigFile(ShippedConfigFile):
    """``--config NAME``, which may also be one that says how an environment is played.

    ``protocol/search_r1`` and its like are for ``research fit``; their protocol and number of
    passages are those of the evaluation here.
    """

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: Any) -> None:
        """Merge the config into what was parsed so far."""
        name = str(value).removesuffix(".yaml")
        if name in shipped_configs(PROTOCOL_CONFIGS):
            env = read_yaml(Path(find_config(name)))["model"]["env"]
            value = json.dumps({key: env[key] for key in ("protocol", "top_k")})
        ShippedConfigFile.apply_config(parser, cfg, dest, value)


def _check_text(text: str) -> None:
    try:
        check_bounds(text, "the text of --config")
    except UsageError as error:
        raise TypeError(str(error)) from error
    except yaml.YAMLError:
        return  # the parser says what is wrong


def _with_bases(path: Path) -> list[Path]:
    """Return the configs that ``path`` stands for, in the order in which they are merged.

    A base is a file beside the config that names it, else a shipped config.

    Raises:
        TypeError: a file is no config, or its base is none (jsonargparse turns it into a usage
            error).
    """
    found = [path]
    while "base" in (sections := _sections(found[-1])):
        given = sections["base"]
        must = f"{found[-1]}: base must be a config beside it or one that ships with the package"
        if not isinstance(given, str):
            raise TypeError(f"{must}, got {given!r}")
        beside = found[-1].parent / given
        base = beside if beside.is_file() else _shipped(given)
        if not base.is_file():
            raise TypeError(f"{must}, got {given!r}{_shipped_names(given)}")
        found.append(base)
        if base.resolve() in {one.resolve() for one in found[:-1]}:
            chain = " -> ".join(one.name for one in found)
            raise TypeError(f"{path}: base must not lead back to a config before it, got {chain}")
    return found[::-1]


def _sections(path: Path) -> dict[str, Any]:
    """Return what a config holds; name the file where it is empty, no YAML or beyond bounds.

    Raises:
        TypeError: it is (jsonargparse turns it into a usage error).
    """
    try:
        loaded = read_yaml(path)
    except UsageError as error:
        raise TypeError(str(error)) from error
    if not isinstance(loaded, dict):
        got = "an empty file" if loaded is None else type(loaded).__name__
        raise TypeError(f"{path} must hold sections such as model and data, got {got}")
    return loaded


_raises: ContextVar[bool] = ContextVar("raises", default=False)


@contextmanager
def usage_errors_raised() -> Iterator[None]:
    """Within, a parser raises UsageError where a command would end with status 2."""
    token = _raises.set(True)
    try:
        yield
    finally:
        _raises.reset(token)


class OneLineParser(ArgumentParser):
    """A parser whose errors are one line, and which reads the class paths of older configs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        answer_for_moved_modules()
        super().__init__(*args, **kwargs)

    def parse_string(self, content: str, path: Any = "", *args: Any, **kwargs: Any) -> Any:
        """Parse a config; from a file, which has a ``path``, the line ``base: ...`` is left out."""
        if path and _BASE.search(content):
            content = _BASE.sub("", content)
            content = content if yaml.safe_load(content) else "{}"
        return super().parse_string(content, path, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with status 2 and the reason, without the usage of some hundred options."""
        if not self.exit_on_error or os.environ.get(TRACEBACK):
            super().error(message, ex)  # raises, or prints all there is
        options = set(self._option_string_actions)
        for action in self._actions:
            for parser in action.choices.values() if isinstance(action.choices, dict) else ():
                options.update(parser._option_string_actions)
        line = one_line(message, sorted(options))
        if _raises.get():
            raise UsageError(line) from ex
        sys.stderr.write(printable(f"research: error: {line}\n"))
        sys.exit(FAILED)
