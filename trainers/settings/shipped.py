"""The configs that ship with the package, found by name, and parsers whose errors are one line."""

from __future__ import annotations

import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from research_rl.envs.system import FAILED, did_you_mean
from research_rl.trainers.settings.errors import TRACEBACK, one_line
from research_rl.trainers.settings.moved import answer_for_moved_modules

CONFIGS = Path(str(files("research_rl.configs")))
EVALUATION = "evaluate"
"""The folder of the configs that are for ``research evaluate`` alone."""


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
    path = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
    if Path(name).is_file() or not path.resolve().is_relative_to(CONFIGS.resolve()):
        return name
    if path.is_file():
        return str(path)
    known = shipped_configs()
    hint = did_you_mean(name.removesuffix(".yaml"), known)
    raise TypeError(f"no config {name!r}{hint} (shipped: {', '.join(known)})")


class ShippedConfigFile(ActionConfigFile):
    """``--config NAME`` where NAME is a file, a shipped config or YAML itself."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: Any) -> None:
        """Merge the config into what was parsed so far."""
        is_yaml = isinstance(value, str) and ("\n" in value or ": " in value or "{" in value)
        known = value if is_yaml else find_config(str(value))
        if not is_yaml and Path(known).is_file():
            _check_sections(Path(known))
        ActionConfigFile.apply_config(parser, cfg, dest, known)


def _check_sections(path: Path) -> None:
    """Name the file where a config is empty or no YAML.

    Raises:
        TypeError: it is (jsonargparse turns it into a usage error).
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TypeError(f"{path} must be YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        got = "an empty file" if loaded is None else type(loaded).__name__
        raise TypeError(f"{path} must hold sections such as model and data, got {got}")


class OneLineParser(ArgumentParser):
    """A parser whose errors are one line, and which reads the class paths of older configs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        answer_for_moved_modules()
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with status 2 and the reason, without the usage of some hundred options."""
        if not self.exit_on_error or os.environ.get(TRACEBACK):
            super().error(message, ex)  # raises, or prints all there is
        options = set(self._option_string_actions)
        for action in self._actions:
            for parser in action.choices.values() if isinstance(action.choices, dict) else ():
                options.update(parser._option_string_actions)
        sys.stderr.write(f"research: error: {one_line(message, sorted(options))}\n")
        sys.exit(FAILED)
