"""The generated part of docs/architecture.md: the rooms and who imports whom, from the door-plates.

A room is a folder of the packages; its door-plate is the docstring of its ``__init__.py``.

    python docs/architecture.py        # renews the page
"""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = (f"<!-- {word} of what docs/architecture.py makes -->" for word in ("begin", "end"))
PACKAGES = ("envs", "agents", "trainers", "configs")


def plates() -> dict[str, str]:
    """The door-plate of each room, by its folder: ``envs/retrieval/web``."""
    found = {}
    for package in PACKAGES:
        for door in sorted((ROOT / package).rglob("__init__.py")):
            tree = ast.parse(door.read_text(encoding="utf-8"))
            found[door.parent.relative_to(ROOT).as_posix()] = ast.get_docstring(tree) or ""
    return found


def said(plate: str, what: str) -> list[str]:
    """The words that a plate has behind ``what:``; they may go on in indented lines."""
    found = re.search(rf"^{what}: (.+(?:\n .+)*)", plate, re.MULTILINE)
    return [] if found is None else re.findall(r"[\w./]*\w", found[1])


def tree() -> list[str]:
    """One line for each room, indented by its depth: what it is and what to read first."""
    lines = []
    for room, plate in plates().items():
        files = [word for word in said(plate, "Read first") if word.endswith(".py")]
        links = ", then ".join(f"[{name}](../{room}/{name})" for name in files)
        first = f" Read first: {links}." if links else ""
        name, what = room.rpartition("/")[2], plate.partition("\n")[0]
        lines.append(f"{'  ' * room.count('/')}- `{name}/`: {what}{first}")
    return lines


def arrows() -> list[str]:
    """One line for each room that imports another; what is imported stands above."""
    reads = {
        room.replace("/", "."): sorted({*said(plate, "May import")} - {"nothing", "of", "ours"})
        for room, plate in plates().items()
    }
    order = [room for room in TopologicalSorter(reads).static_order() if reads.get(room)]
    width = max(map(len, order))
    return [
        f"{room:{width}} -> {', '.join(reads[room])}".replace(f" {room.partition('.')[0]}.", " .")
        for room in order
    ]


def made(page: str) -> str:
    """The page with its generated part made anew."""
    before, _, rest = page.partition(BEGIN)
    lines = ["", *tree(), "", "```text", *arrows(), "```", ""]
    return before + BEGIN + "\n".join(lines) + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
