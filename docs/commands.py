"""The page of all commands, from what each says itself to ``--help``.

    python docs/commands.py > commands.md

MkDocs runs this when it builds the site; the package must be installed. The commands are asked in
one process, so that torch is imported once.
"""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module

from research_rl.trainers.cli.dispatch import COMMANDS, HELP, main

WIDTH = "92"
"""Columns of the help."""
HEAD = """\
# All commands

What each command says when it is asked: `research COMMAND --help`. Where to begin:
[your first run](../guides/first-run.md).

"""


def help_of(*words: str) -> str:
    """What ``research WORDS --help`` prints."""
    said = io.StringIO()
    argv, sys.argv = sys.argv, ["research", *words, "--help"]
    try:
        with redirect_stdout(said), redirect_stderr(io.StringIO()):
            main()
    except SystemExit:
        pass
    finally:
        sys.argv = argv
    return said.getvalue()


def commands_below(said: str) -> list[str]:
    """The names in a usage such as ``research index [-h] {build,add} ...``; options have none."""
    usage = said.partition("\n\n")[0]
    found = re.search(r"\s\{([\w,-]+)\}\s*\.\.\.", usage)
    return found[1].split(",") if found else []


def section(title: str, said: str, depth: int) -> str:
    return f"{'#' * depth} `{title}`\n\n```text\n{said.rstrip()}\n```\n\n"


def page() -> str:
    """The page as Markdown."""
    made = [HEAD, f"```text\n{HELP.rstrip()}\n```\n\n"]
    for command in COMMANDS:
        said = help_of(command)
        made.append(section(f"research {command}", said, 2))
        for name in commands_below(said):
            made.append(section(f"research {command} {name}", help_of(command, name), 3))
    return "".join(made)


if __name__ == "__main__":
    os.environ["COLUMNS"] = WIDTH
    for module in COMMANDS.values():
        import_module(module)
    sys.stdout.write(page())
