"""The house: packages look down only, rooms and files stay small, others use the door.

A *room* is a folder of the packages; its *door* is its ``__init__.py``, whose docstring, the
door-plate, says what the room is, what to read first and what it may import. Modules that lie
directly in a folder that also holds rooms (``envs/``, ``trainers/``, ...) are its *hall*. Everybody
inside a folder may import from its hall; from anywhere else one uses the door.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "setup.cfg").is_file())
PACKAGES = ("envs", "agents", "trainers", "configs")
BESIDE = ("tests", "benchmarks", "examples")
MAY_IMPORT = {
    "envs": {"envs"},
    "agents": {"envs", "agents"},
    "trainers": {"envs", "agents", "trainers", "configs"},
    "configs": {"configs"},
}
HEAVY = {"torch", "transformers", "faiss", "pyarrow", "pandas", "datasets", "peft", "matplotlib"}
NOT_BELOW_TRAINERS = {"pytorch_lightning", "jsonargparse", "omegaconf", "matplotlib", "tensorboard"}
LOCKS = {"fcntl", "filelock", "msvcrt"}
LARGEST_ROOM = 12
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
"""Lines; docstrings and comments count."""
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
SAME_NAME = {
    "main": "each command's module has the function that runs it",
}
"""Public names that several modules define, each with the reason."""


def module_name(path: Path) -> str:
    """``envs/system/files.py`` is ``envs.system.files``; a door is its room."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(p): p for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
ROOMS = {name for name, path in SOURCES.items() if path.stem == "__init__"}
MODULES = set(SOURCES) - ROOMS
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def room_of(module: str) -> str:
    return module if module in ROOMS else module.rpartition(".")[0]


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that an import statement below ``tree`` reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own(names: Iterator[str]) -> set[str]:
    """Those of ``names`` that are modules or rooms of ours, without ``research_rl.``.

    ``from research_rl.envs.system import files`` reads a module, not its door.
    """
    found = {n.removeprefix("research_rl.") for n in names} & set(SOURCES)
    return {n for n in found if n in MODULES or not any(m.rpartition(".")[0] == n for m in found)}


IMPORTED = {name: own(imports(tree)) - {name} for name, tree in TREES.items()}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def at_import_time(tree: ast.Module) -> Iterator[str]:
    """The imports that run when the module is imported: none in functions or for types alone."""
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(ast.Module([node], []))
        elif not isinstance(node, FUNCTIONS | ast.Lambda):
            stack += [] if is_type_checking(node) else ast.iter_child_nodes(node)


def outside(names: Iterator[str]) -> set[str]:
    return {n.partition(".")[0] for n in names}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_packages_look_down_only(module: str) -> None:
    names = set(imports(TREES[module]))
    package = module.partition(".")[0]
    assert not [n for n in names if n.startswith(".")], "imports are absolute"
    ours = {n.split(".")[1] for n in names if n.startswith("research_rl.")}
    assert ours <= MAY_IMPORT[package]
    bare = {n for n in outside(iter(names)) if n in PACKAGES or n == "lightning"}
    assert not bare, f"{bare}: write research_rl.<package>, and pytorch_lightning for Lightning"
    if package != "trainers":
        assert not outside(iter(names)) & NOT_BELOW_TRAINERS
    if module != "envs.system.locks":
        assert not outside(iter(names)) & LOCKS, "envs.system.alone_in is the one lock of files"


@pytest.mark.parametrize("module", sorted(m for m in SOURCES if within(m, "envs")))
def test_envs_import_nothing_heavy(module: str) -> None:
    assert not outside(at_import_time(TREES[module])) & HEAVY


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_is_small(room: str) -> None:
    held = sorted(m for m in MODULES if room_of(m) == room and not m.endswith("__main__"))
    assert len(held) <= LARGEST_ROOM, f"{room} holds {len(held)} modules: {', '.join(held)}"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_files_and_functions_are_short(module: str) -> None:
    lines = len(SOURCES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{module} has {lines} lines; split it by meaning"
    made = (n for n in ast.walk(TREES[module]) if isinstance(n, FUNCTIONS))
    lengths = [(n.name, (n.end_lineno or n.lineno) - n.lineno + 1) for n in made]
    long = [f"{name}, {length}" for name, length in lengths if length > LONGEST_FUNCTION]
    assert not long, f"{module} has functions that are too long, in lines: {long}"


def test_files_beside_the_packages_are_short() -> None:
    paths = (p for folder in BESIDE for p in sorted((ROOT / folder).rglob("*.py")))
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in paths}
    long = [f"{p.relative_to(ROOT)}, {n}" for p, n in lengths.items() if n > LONGEST_FILE]
    assert not long, f"split these files by subject, they are too long, in lines: {long}"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_others_use_the_door(module: str) -> None:
    """A module is imported from inside its room, or from below its hall; else through the door."""
    inner = {m for m in IMPORTED[module] if m in MODULES and not within(module, room_of(m))}
    assert not inner, f"{module} imports {sorted(inner)}; take the names from the room's door"


def place(module: str) -> str:
    """A room, or a module of a hall: what the house's drawing shows as one box."""
    room = room_of(module)
    hall = any(other != room and within(other, room) for other in ROOMS)
    return module if hall and module in MODULES else room


def test_rooms_form_no_circle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module in MODULES:
        graph[place(module)] |= {place(other) for other in IMPORTED[module]} - {place(module)}
    for hall in {p for p in graph if p in ROOMS and any(within(m, p) for m in graph if m != p)}:
        graph.pop(hall)  # a door over rooms only exports
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


def test_modules_form_no_circle_at_import_time() -> None:
    graph = {m: own(at_import_time(TREES[m])) & MODULES - {m} for m in MODULES}
    tuple(TopologicalSorter(graph).static_order())


def plate(room: str) -> tuple[str, list[str], set[str]]:
    """What a door-plate says: what the room is, what to read first, what it may import."""
    said = ast.get_docstring(TREES[room]) or ""
    what = said.partition("\n")[0]
    first = re.search(r"^Read first: (.+)$", said, re.MULTILINE)
    may = re.search(r"^May import: ((?:.+\n?(?=\s|$))+)", said, re.MULTILINE)
    want = f"{SOURCES[room]} must say «Read first: …» and «May import: …»"
    assert first, want
    assert may, want
    files = [word.strip(",") for word in first[1].split() if word.strip(",").endswith(".py")]
    allowed = {word.strip() for word in may[1].replace("\n", " ").split(",")}
    return what, files, allowed - {"nothing of ours"}


@pytest.mark.parametrize("room", sorted(ROOMS - {"configs"}))
def test_the_door_plate_is_true(room: str) -> None:
    what, first, allowed = plate(room)
    assert what.endswith(".")
    assert first
    assert all((SOURCES[room].parent / name).is_file() for name in first)
    package = room.partition(".")[0]
    read: set[str] = set()
    for module in (m for m in MODULES if room_of(m) == room):
        for other in IMPORTED[module]:
            if not (other in MODULES and room_of(other) == room) and other != room:
                top = other.partition(".")[0]
                read.add(other if top == package else top)
    assert read == allowed, (
        f"{SOURCES[room]}: May import: {', '.join(sorted(read)) or 'nothing of ours'}"
    )


@pytest.mark.parametrize("room", sorted(ROOMS - {"configs"}))
def test_a_door_exports_what_it_takes(room: str) -> None:
    """``__all__`` names what the door imports, and nothing private goes through it."""
    taken = {
        alias.asname or alias.name
        for node in ast.walk(TREES[room])
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("research_rl.")
        for alias in node.names
    }
    if room != "envs.system":
        taken.discard("lazy")  # what makes a door, not what goes through it
    listed: set[str] = set()
    for node in TREES[room].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = set(ast.literal_eval(node.value))
    assert taken == listed
    assert not [name for name in listed if name.startswith("_")]


def test_every_folder_is_packaged() -> None:
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    listed = re.findall(r"^    (research_rl(?:\.\w+)+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(f"research_rl.{room}" for room in ROOMS)


def definitions(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and constants of a module; loggers are no constants."""
    for node in tree.body:
        if isinstance(node, FUNCTIONS | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (n for target in targets for n in ast.walk(target))  # a, b = 1, 2
            stored = (n for n in names if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            yield from (n.id for n in stored if n.id != "log")


def test_a_public_name_is_defined_once() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for module in sorted(MODULES):
        for name in definitions(TREES[module]):
            if not name.startswith("_"):
                places[name].append(module)
    twice = {n: p for n, p in places.items() if len(p) > 1}
    assert set(twice) == set(SAME_NAME), {n: p for n, p in twice.items() if n not in SAME_NAME}


@pytest.mark.parametrize(
    ("package", "heavy"),
    [("envs", HEAVY | NOT_BELOW_TRAINERS), ("agents", HEAVY | NOT_BELOW_TRAINERS)],
)
def test_importing_a_package_stays_light(package: str, heavy: set[str]) -> None:
    code = (
        f"import sys, research_rl.{package}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & heavy
