"""The command ``research page``: the page of a run's folder, also of an old or a dead run."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research_rl.envs.system import CommandLine, printable
from research_rl.trainers.overview import RunFolder, is_run, write_run_page


def main(args: Sequence[str]) -> None:
    """Run ``research page`` with these arguments."""
    parser = CommandLine(
        prog="research page",
        description="Write index.html of a run's folder: verdict, curves, questions, health, "
        "settings, costs. Text and numbers of the folder are read, nothing of it is run.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("--out", type=Path, help="the file to write; default RUN/index.html")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compare only options that the shipped config names; this needs no torch",
    )
    given = parser.parse_args(args)
    if not is_run(given.run):
        RunFolder.read(given.run)  # says what a run's folder must have
    full = None if given.quick else full_config
    print(f"wrote {printable(str(write_run_page(given.run, full, out=given.out)))}")


def full_config(words: Sequence[str]) -> Mapping[str, Any]:
    """Return all options that ``research fit`` has with these words, defaults included.

    Raises:
        ValueError: it refuses them.
    """
    from research_rl.trainers.plan import parsed

    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            return parsed(words)
    except SystemExit as error:
        raise ValueError(said.getvalue()) from error
