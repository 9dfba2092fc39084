"""What a text says is there: paths of the repository and dotted names of the packages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from doubles.places import ROOT

DOOR = ROOT / "door" / "__init__.py"
"""What installs as ``research_rl`` itself."""
_FOLDERS = "envs|agents|trainers|tests|configs|benchmarks|examples|docs"
_PATH = re.compile(rf"(?<![\w./-])(?:{_FOLDERS})/[\w./-]*")
_NAME = re.compile(r"\bresearch_rl(?!\.json\b)(?:\.\w+)+")


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
    """Whether a dotted name is a module or what one binds, by its source: nothing is imported."""
    place, parts = ROOT, name.split(".")[1:]
    if len(parts) == 1 and parts[0] in [*_bound(DOOR), "__version__"]:
        return True
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if parts and (place / f"{parts[0]}.py").is_file():
        place /= f"{parts.pop(0)}.py"
    else:
        place /= "__init__.py"
    return place.is_file() and (not parts or parts[0] in _bound(place))


@cache
def _bound(module: Path) -> set[str]:
    """Every name that a module defines, sets or imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found
