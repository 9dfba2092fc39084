"""The command ``research compare``: several runs as a table in the terminal and as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from research_rl.envs.system import CommandLine, printable, printable_json, write_whole
from research_rl.trainers.overview import (
    RunFolder,
    comparison_of,
    comparison_page,
    comparison_text,
)


def main(args: Sequence[str]) -> None:
    """Run ``research compare`` with these arguments."""
    parser = CommandLine(
        prog="research compare",
        description="Compare runs: differences of their configs, curves over each other, and "
        "paired tests where they were asked the same questions. The others are compared with the "
        "first. Text and numbers of the folders are read, nothing of them is run.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=Path, nargs="+", help="folders of two runs or more")
    parser.add_argument(
        "--out", type=Path, default=Path("comparison.html"), help="the page; default %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    given = parser.parse_args(args)
    if len(given.runs) < 2:
        parser.error("two runs or more must be given to compare, got one")
    runs = [RunFolder.read(path) for path in given.runs]
    found = comparison_of(runs)
    write_whole(given.out, comparison_page(found, runs, given.out))
    if given.json:
        print(printable_json(json.dumps(asdict(found), ensure_ascii=False)))
    else:
        print(f"{comparison_text(found)}\n\nwrote {printable(str(given.out))}")
