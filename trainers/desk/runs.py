"""The command ``research runs``: the runs below a folder, a line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from research_rl.envs.system import CommandLine, printable, printable_json
from research_rl.trainers.overview import runs_in, runs_table


def main(args: Sequence[str]) -> None:
    """Run ``research runs`` with these arguments."""
    parser = CommandLine(
        prog="research runs",
        description="List the runs below a folder, the latest first: state, step, best validation "
        "F1, searches, verdict. Text and numbers of the folders are read, nothing of them is run.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), help="default %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args(args)
    lines = runs_in(given.folder)
    if given.json:
        print(printable_json(json.dumps([line._asdict() for line in lines], ensure_ascii=False)))
    elif lines:
        print(runs_table(lines))
    else:
        print(f"no run below {printable(str(given.folder))}")
