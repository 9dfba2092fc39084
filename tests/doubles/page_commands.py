"""The commands and files that pages show, and whether the real parsers take the commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from doubles.entry_points import TRAINER, parser_of
from doubles.places import ROOT

from research_rl.trainers.cli import dispatch

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", *GUIDES]
"""The pages whose every command must be run by a test or listed as not run."""
LIST = ROOT / "docs" / "guides" / "tested.md"
"""The page that lists what is not run, and why."""
_BASH = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(
    r"((?:`[\w-]+\.(?:py|jsonl)`[^`]*?)+)\n\n```(?:python|json)\n(.*?)^```", re.M | re.S
)
_OURS = ("research", ".venv/bin/research", "research_rl.trainers.cli")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in the bash blocks of a page, without comments and redirections."""
    for block in _BASH.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"(?:^|\s)#.*", "", line)  # to shlex every # begins a comment
            words = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
            words.whitespace_split = True
            words.commenters = ""
            yield from _split(list(words))


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    target = False
    for word in [*words, "&&"]:
        if word in ("&&", "|", ";", ">"):
            if command and not target:
                yield command
            command, target = [], word == ">"
        else:
            command.append(word)


def ours(command: list[str]) -> list[str] | None:
    """What a command gives to ``research``; None for other programs."""
    for place, word in enumerate(command):
        if word in _OURS:
            return command[place + 1 :]
    return None


def shown_files(text: str) -> dict[str, str]:
    """The files that a page shows: the block behind a paragraph that names them."""
    return {
        name: body
        for names, body in _FILE.findall(text)
        for name in re.findall(r"`([\w-]+\.(?:py|jsonl))`", names.rpartition("\n\n")[2])
    }


def not_run() -> dict[str, str]:
    """The rows of the list: how a command begins, and why no test runs it."""
    rows = re.findall(r"^\| `([^|]+)` \| (.+) \|$", LIST.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def parse(words: list[str]) -> None:
    """Give a command line to its real parser; options, classes and configs must be there.

    Raises:
        Exception: the parser refuses it; of SystemExit its status is not 0.
    """
    command, *rest = words
    if command in ("--help", "--version"):
        return
    assert command in dispatch.COMMANDS, f"no command {command!r}"
    try:
        if command in TRAINER[:4]:
            _parser("fit").parse_args(words)
        elif command == "sft":
            _parser("sft").parse_args(["fit", *rest])
        elif command in ("plan", "collect"):
            _, others = _parser(command).parse_known_args(rest)
            _parser("fit").parse_args(["fit", *others])
        else:
            _parser(command).parse_args(rest)
    except SystemExit as ended:  # --help and its like
        if ended.code:
            raise ValueError(f"research {shlex.join(words)} is refused") from ended


@cache
def _parser(command: str) -> Any:
    return parser_of(command)


def write_files(folder: Path) -> None:
    """Write what the guides show as files of the reader's."""
    for page in GUIDES:
        for name, body in shown_files(page.read_text(encoding="utf-8")).items():
            (folder / name).write_text(body, encoding="utf-8")
