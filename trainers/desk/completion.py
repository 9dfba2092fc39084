"""The command ``research completion``: a script with which a shell completes ``research``.

    research completion bash > ~/.local/share/bash-completion/completions/research

It completes commands, their options, and names of shipped configs. The options of a config, some
hundred, are completed by an editor with ``research schema``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec

from research_rl.envs.system import CommandLine, parser_of
from research_rl.trainers.settings import UsageError, shipped_configs

_WITH_A_CONFIG = ("fit", "validate", "test", "predict", "sft", "evaluate")
"""Commands whose parser is made from classes; their options are the config's."""
_OF_A_CONFIG = (
    "--ckpt_path",
    "--print_config",
    "--trainer.default_root_dir",
    "--trainer.max_steps",
)
_OF_EVERY = ("--debug", "--trust")


def main(args: Sequence[str]) -> None:
    """Run ``research completion`` with these arguments.

    Raises:
        UsageError: the extra that writes such scripts is not installed.
    """
    parser = CommandLine(
        prog="research completion",
        description="Print a script with which a shell completes the command research.",
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="for which it is")
    given = parser.parse_args(args)
    if find_spec("shtab") is None:
        raise UsageError(
            "the package shtab must be installed to write completions, and is not; "
            "pip install shtab"
        )
    import shtab

    from research_rl.trainers.cli import COMMANDS

    print(shtab.complete(whole_parser(COMMANDS), given.shell))


def whole_parser(commands: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return a parser of all commands with their options.

    Args:
        commands: the module of each, in which its ``main`` is.
    """
    whole = argparse.ArgumentParser("research", description="Train models to reason with search.")
    whole.add_argument("--version", action="store_true", help="print the version")
    below = whole.add_subparsers()
    for name, module in commands.items():
        made = None if name in _WITH_A_CONFIG else parser_of(import_module(module).main)
        about = [] if made is None else [made]
        # shtab passes over commands without a line of help
        one = below.add_parser(name, parents=about, add_help=made is None, help=f"research {name}")
        if made is None or name in ("collect", "plan"):
            one.add_argument("--config", "-c", choices=shipped_configs(), help="a shipped config")
            for option in _OF_A_CONFIG if made is None else ():
                one.add_argument(option, help="of research fit")
        for option in _OF_EVERY:
            one.add_argument(option, action="store_true", help="of every command")
    return whole
