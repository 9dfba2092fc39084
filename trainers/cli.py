"""The command ``research``: finds the subcommand, and ends a user's mistake with one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import version

from research_rl.trainers.usage import FAILED, TRACEBACK, UsageError, is_users_mistake

HELP = """\
usage: research COMMAND [options]

Train language models to reason with search.

commands:
  fit       train a policy              research fit --config quickstart
  validate  score held-out questions    research validate --config quickstart --ckpt_path best
  test      score the test questions    research test --config quickstart --ckpt_path best
  predict   answer questions            research predict --config quickstart --ckpt_path best
  index     make an index, search it    research index build --corpus FILE --out DIR
  export    write a Hugging Face folder research export --ckpt FILE --out DIR

`research COMMAND --help` shows the options of a command. --version prints the version; --debug, or
RESEARCH_TRACEBACK=1, shows the traceback of an error.
"""


def main() -> None:
    """Run the console script; a user's mistake exits with status 2 and a line that names it."""
    if "--debug" in sys.argv:  # an environment variable reaches the processes of other ranks too
        sys.argv.remove("--debug")
        os.environ[TRACEBACK] = "1"
    # A user's own module (--model.algorithm my_file.MyRule) lies where the command is run.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        _dispatch(sys.argv[1:])
    except Exception as error:
        if os.environ.get(TRACEBACK) or not is_users_mistake(error):
            raise
        print(f"research: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(FAILED)


def _dispatch(args: list[str]) -> None:
    command = args[0] if args else "--help"
    commands: dict[str, Callable[[list[str]], None]] = {
        **dict.fromkeys(("fit", "validate", "test", "predict"), _train),
        "index": _index,
        "export": _export,
    }
    if command in ("--help", "-h"):
        print(HELP, end="")
    elif command == "--version":
        print(f"research-rl {version('research-rl')}")
    elif command in commands:
        commands[command](args[1:])
    else:
        near = get_close_matches(command, commands, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no command {command!r} (known: {', '.join(commands)}){hint}")


# Each command imports its own world, so that `research index` need not wait for Lightning.
def _train(args: list[str]) -> None:
    from research_rl.trainers.lightning_cli import run

    run()


def _index(args: list[str]) -> None:
    from research_rl.envs.retrieval import cli

    cli.main(args)


def _export(args: list[str]) -> None:
    from research_rl.trainers import export

    print(f"wrote {export.main(args)}")


if __name__ == "__main__":
    main()
