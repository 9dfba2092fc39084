"""Pages of the site that nobody writes: rooms by their door-plates, configs by their first lines.

Nothing of the package is imported; sources are read as text.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from architecture import PACKAGES, ROOT, plates

FOLDER = "reference"
"""Where these pages lie in the site."""
GROUPS = {
    "": "Runs",
    "algorithm": "Learning rules",
    "price": "What searches cost",
    "engine": "Where rollouts are sampled",
    "evaluate": "Evaluations",
    "guard": "Guards",
    "method": "Methods of an evaluation",
    "protocol": "Dialects",
    "retriever": "Indexes",
    "strategy": "Many devices",
}
"""The folders of configs/, and what the table calls them; others come last, by their names."""


def configs_page() -> str:
    """A table for each folder of configs/: name, and the first line of the file."""
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    folders = {file.parent.relative_to(ROOT / "configs").as_posix().strip(".") for file in files}
    order = list(GROUPS)
    made = [
        "# All configs\n\nEach is named as in `research fit --config quickstart`. ",
        "Several merge, the last one wins: `--config quickstart --config algorithm/dapo`. ",
        "How: [configuration](../configuration.md).\n",
    ]
    for folder in sorted(folders, key=lambda f: (order.index(f) if f in order else len(order), f)):
        made.append(f"\n## {GROUPS.get(folder, folder)}\n\n| config | what it is |\n|---|---|\n")
        for file in files:
            if file.parent == ROOT / "configs" / folder:
                name = file.relative_to(ROOT / "configs").with_suffix("").as_posix()
                link = f"../../configs/{name}.yaml"
                made.append(f"| [`{name}`]({link}) | {first_line(file)} |\n")
    return "".join(made)


def first_line(config: Path) -> str:
    """The first line of a YAML, its comment, without the command behind a colon."""
    line = config.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()
    line = re.sub(r":? (?:research|--config) .*$", "", line)
    line = re.sub(r"\s*\(?docs/[\w-]+\.md\)?:?$", "", line)
    line = line.rstrip(":.").replace("|", "\\|")
    return line if line.endswith("?") else f"{line}."


def rooms() -> dict[str, str]:
    """One page for each room that exports something, by its place in the site."""
    homes = _homes()
    made = {}
    for room, plate in plates().items():
        names = exports(room)
        if names:
            made[f"{FOLDER}/{room}.md"] = _room_page(room, plate, names, homes)
    return made


def exports(room: str) -> list[str]:
    """What the door of a room exports, in the order of ``__all__``."""
    tree = ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _homes() -> dict[str, str]:
    """The room whose page explains a name: the one that defines it, if that exports it."""
    homes: dict[str, str] = {}
    for room in sorted(plates(), key=lambda name: (name.count("/"), name)):
        for name in exports(room):
            if name not in homes or _imports_from(room, name) is None:
                homes[name] = room
    return homes


def _imports_from(room: str, name: str) -> str | None:
    """The other room from which a door takes a name, or None where the name is its own."""
    tree = ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(a.name == name for a in node.names):
            place = (node.module or "").removeprefix("research_rl.").replace(".", "/")
            if (ROOT / place).is_dir() and place != room:
                return place
            owner = place.rpartition("/")[0]
            return owner if owner != room else None
    return None


def _room_page(room: str, plate: str, names: list[str], homes: dict[str, str]) -> str:
    module = "research_rl." + room.replace("/", ".")
    what, _, rest = plate.partition("\n")
    rest = re.split(r"^(?:Read first|May import):", rest.strip(), maxsplit=1, flags=re.MULTILINE)[0]
    depth = "../" * (room.count("/") + 1)
    made = [f"# `{module}`\n\n{what}\n\n{rest.strip()}\n\n"]
    made.append(f"```python\nimport {module}\n```\n\n")
    own = [name for name in names if homes[name] == room]
    others = [name for name in names if homes[name] != room]
    if others:
        links = ", ".join(
            f"[`{n}`]({depth}{FOLDER}/{homes[n]}.md#research_rl.{homes[n].replace('/', '.')}.{n})"
            for n in others
        )
        made.append(f"Exported here too: {links}.\n\n")
    made += [f"::: {module}.{name}\n\n" for name in own]
    return "".join(made)


def rooms_nav() -> list[dict[str, object]]:
    """The navigation of the rooms: one section for each package, outer rooms first."""
    made: list[dict[str, object]] = []
    for package in PACKAGES:
        mine = (f"{FOLDER}/{package}/", f"{FOLDER}/{package}.")
        pages = [page for page in rooms() if page.startswith(mine)]
        entries = [{_title(page): page} for page in pages]
        if entries:
            made.append({package: entries})
    return made


def _title(page: str) -> str:
    return page.removeprefix(f"{FOLDER}/").removesuffix(".md").replace("/", ".")
