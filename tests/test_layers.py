"""Imports run only along the arrows: envs <- agents <- trainers, and inside each package too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("envs", "agents", "trainers", "configs")
MAY_IMPORT = {
    "envs": {"envs"},
    "agents": {"envs", "agents"},
    "trainers": {"envs", "agents", "trainers", "configs"},
    "configs": {"configs"},
}
HEAVY = {"torch", "transformers", "faiss", "pyarrow", "pandas", "datasets", "peft", "matplotlib"}
NOT_BELOW_TRAINERS = {"pytorch_lightning", "jsonargparse", "omegaconf", "matplotlib", "tensorboard"}
CHAINS = (  # whoever stands later may know those before it, never the other way round
    ("envs.types", "envs.protocol", "envs.rewards", "envs.env", "envs.vector"),
    ("envs.types", "envs.retrieval", "envs.env"),
    ("envs.types", "envs.questions", "envs.env"),
    ("envs.types", "envs.synthetic", "envs.env"),
    ("agents.types", "agents.policy", "agents.engine", "agents.rollout", "agents.research"),
    ("agents.types", "agents.policy", "agents.cached", "agents.rollout"),
    ("trainers.types", "trainers.advantages", "trainers.algorithms", "trainers.module"),
    ("trainers.types", "trainers.losses", "trainers.algorithms", "trainers.module"),
    ("trainers.evaluation", "trainers.callbacks", "trainers.cli"),
    ("trainers.viewer", "trainers.callbacks"),
    ("trainers.plots", "trainers.callbacks"),
    ("trainers.module", "trainers.cli"),
)


def module_name(path: Path) -> str:
    """``envs/retrieval/corpus.py`` is ``envs.retrieval.corpus``; a package is its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(p): p for package in PACKAGES for p in (ROOT / package).rglob("*.py")}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that an import statement below ``tree`` reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def at_import_time(tree: ast.Module) -> Iterator[str]:
    """The imports that run when the module is imported: none in functions or for types alone."""
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(ast.Module([node], []))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            stack += [] if is_type_checking(node) else ast.iter_child_nodes(node)


def parse(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def own(names: Iterator[str]) -> set[str]:
    """Those of ``names`` that are modules of ours, without the ``research_rl.`` prefix."""
    return {n.removeprefix("research_rl.") for n in names} & set(SOURCES)


def outside(names: Iterator[str]) -> set[str]:
    return {n.partition(".")[0] for n in names}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_packages_look_down_only(module: str) -> None:
    names = set(imports(parse(module)))
    package = module.partition(".")[0]
    assert not [n for n in names if n.startswith(".")], "imports are absolute"
    ours = {n.split(".")[1] for n in names if n.startswith("research_rl.")}
    assert ours <= MAY_IMPORT[package]
    bare = {n for n in outside(iter(names)) if n in PACKAGES or n == "lightning"}
    assert not bare, f"{bare}: write research_rl.<package>, and pytorch_lightning for Lightning"
    if package != "trainers":
        assert not outside(iter(names)) & NOT_BELOW_TRAINERS


@pytest.mark.parametrize("module", sorted(m for m in SOURCES if m.startswith("envs")))
def test_envs_import_nothing_heavy(module: str) -> None:
    assert not outside(at_import_time(parse(module))) & HEAVY


def reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for name in graph[todo.pop()] - seen:
            seen.add(name)
            todo.append(name)
    return seen


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def graph_of(imports_of: Callable[[ast.Module], Iterator[str]]) -> dict[str, set[str]]:
    """Who imports whom. A package's __init__ only exports, so it is left out on both sides."""
    modules = {m for m in SOURCES if SOURCES[m].stem != "__init__"}
    return {m: own(imports_of(parse(m))) & modules - {m} for m in modules}


def test_no_cycles_at_import_time() -> None:
    tuple(TopologicalSorter(graph_of(at_import_time)).static_order())  # raises CycleError


@pytest.mark.parametrize("chain", CHAINS, ids=" <- ".join)
def test_order_inside_the_packages(chain: tuple[str, ...]) -> None:
    graph = graph_of(imports)
    for position, low in enumerate(chain):
        for module in (m for m in graph if within(m, low)):
            seen = reachable(module, graph)
            above = {s for s in seen for high in chain[position + 1 :] if within(s, high)}
            assert not above, f"{module} stands below {sorted(above)}"


def test_importing_envs_stays_light() -> None:
    code = "import sys, research_rl.envs; print(*{m.partition('.')[0] for m in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & (HEAVY | NOT_BELOW_TRAINERS)
