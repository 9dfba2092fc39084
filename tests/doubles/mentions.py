"""What a text says is there: paths of the repository and dotted names of the packages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from doubles.places import ROOT

_FOLDERS = "envs|agents|trainers|tests|configs|benchmarks|examples|docs"
_PATH = re.compile(rf"(?<![\w./-])(?:{_FOLDERS})/[\w./-]*")
_NAME = re.compile(r"\bresearch_rl(?:\.\w+)+")


def paths_in(text: str) -> set[str]:
    """The paths below the repository's folders that a text mentions: ``envs/env.py``, ``docs/``."""
    return {found.rstrip(".") for found in _PATH.findall(text)}


def names_in(text: str) -> set[str]:
    """The dotted names that a text mentions: ``research_rl.envs.ReSearchEnv``."""
    return set(_NAME.findall(text))


def missing(text: str, *beside: Path) -> Iterator[str]:
    """Those that are not there; paths may also be meant from a folder of ``beside``."""
    for path in sorted(paths_in(text)):
        if not any((folder / path).exists() for folder in (ROOT, *beside)):
            yield path
    yield from (name for name in sorted(names_in(text)) if not resolves(name))


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or what one holds."""
    module, rest = name, list[str]()
    while module:
        try:
            found: object = import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there and wants a library that is not
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
            continue
        for part in rest:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
