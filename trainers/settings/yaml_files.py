"""YAML that is read as a config, within bounds.

A text of a kilobyte can stand for a thousand million values, through aliases of aliases, or nest
deeper than Python counts. So the size of a text is worked out from its events, before anything is
made of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

import yaml  # type: ignore[import-untyped]

from research_rl.trainers.settings.errors import UsageError

DEEPEST = 100
"""Sections and lists in each other."""
MOST = 100_000
"""Values, those that an alias repeats counted each time."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(file: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        UsageError: it is no YAML, or larger or deeper than a config is.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            check_bounds(stream, file)
            stream.seek(0)
            return yaml.safe_load(stream)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} must be YAML, got {' '.join(str(error).split())}") from error


def check_bounds(text: str | TextIO, where: Path | str) -> None:
    """Refuse a YAML text that stands for too much; nothing is made of it.

    Raises:
        UsageError: it does.
        yaml.YAMLError: it is no YAML.
    """
    sizes: dict[str, int] = {}
    open_: list[list[Any]] = [[None, 0]]  # anchor and values of each section that is not over
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append([event.anchor, 1])
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
            open_[-1][1] += size
            if anchor is not None:
                sizes[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            open_[-1][1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            open_[-1][1] += 1
        if len(open_) > DEEPEST:
            raise UsageError(f"{where} must nest at most {DEEPEST} deep, got more; flatten it")
        if open_[-1][1] > MOST:
            raise UsageError(
                f"{where} must stand for at most {MOST:,} values, got more, its aliases counted "
                "each time; write less"
            )
