"""The commands and their options, found by looking into the parsers; and how one is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
from doubles.payloads import SECRET, write_module

from research_rl.envs.system import TRUST
from research_rl.trainers.cli import dispatch
from research_rl.trainers.usage import Option, option_rows

TRAINER = ("fit", "validate", "test", "predict", "sft")
"""Commands of Lightning's parser, whose options a config holds."""


def prepare(folder: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder the current one, with a stranger's module in it; a secret is in a variable.

    Servers do not start: what they would serve has been read by then.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setenv(TRUST, "")
    monkeypatch.setenv(SECRET, "secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets=None: None)
    write_module(folder, ran)


class Found(BaseException):
    """Carries a command's parser out of it."""


def parser_of(command: str) -> Any:
    """Return the parser with which a command would read its arguments."""

    def stop(self: Any, *args: Any, **kwargs: Any) -> None:
        raise Found(self)

    words = [command] if command in TRAINER[:4] else ["--config", "quickstart"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        patch.setattr(jsonargparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", ["research", *words])
        try:
            import_module(dispatch.COMMANDS[command]).main(words)
        except Found as found:
            return found.args[0]
    raise AssertionError(f"{command} reads its arguments in a way that is not known here")


def options_in_force(command: str) -> list[Option]:
    """Return the options that a command's real parser takes, as the table of options has them."""
    parser = parser_of(command)
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    chosen = "fit" if command == "sft" else command
    return option_rows(inner[0].choices[chosen] if inner else parser)


def subcommands(command: str, parser: Any) -> Iterator[tuple[str, Any]]:
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not inner or command in TRAINER:
        yield command, parser
    for action in inner if command not in TRAINER else ():
        for name, below in action.choices.items():
            yield f"{command} {name}", below


def takes_text(action: Any) -> bool:
    """Whether an option takes a word or a path; numbers and choices can carry nothing."""
    if action.nargs == 0 or action.choices is not None:
        return False
    hint = getattr(action, "_typehint", None) or action.type
    return hint in (None, str, Path) or "str" in str(hint) or "Path" in str(hint)


def own_options() -> dict[str, set[str]]:
    """Every command, with its options that take a text, as the command line spells them."""
    found: dict[str, set[str]] = {}
    for command in dispatch.COMMANDS:
        for name, parser in subcommands(command, parser_of(command)):
            if command in (*TRAINER, "evaluate"):
                continue
            actions = [a for a in parser._actions if a.dest != "help" and takes_text(a)]
            found[name] = {(a.option_strings or [a.dest])[0] for a in actions}
    return found


def call(monkeypatch: pytest.MonkeyPatch, capfd: Any, words: list[Any]) -> tuple[int, str]:
    """Run a command; return its status and what it said. A traceback fails the test."""
    monkeypatch.setattr(sys, "argv", ["research", *map(str, words)])
    status = 0
    try:
        dispatch.main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    said = capfd.readouterr()
    return status, said.err + said.out
