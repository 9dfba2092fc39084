"""The command ``research``: it finds the subcommand and runs it; a user's mistake ends in one line.

``research index --help`` must not wait for Lightning, so each subcommand is imported only when it
is named.
"""

from __future__ import annotations

import os
import pickle
import select
import sys
from importlib import import_module
from importlib.metadata import version

from research_rl.envs.system import (
    FAILED,
    TRUST,
    TrustError,
    did_you_mean,
    not_plain,
    printable,
)
from research_rl.trainers.settings import TRACEBACK, UsageError, careful, is_users_mistake
from research_rl.trainers.usage import CHECKED, check_there, check_usage, show_help

PIPE_CLOSED = 141
"""Exit status where nobody reads the output any more, the one that shells use."""
HELP = """\
usage: research COMMAND [options]

Train language models to reason with search.

commands:
  fit          train a policy              research fit --config quickstart
  collect      make demonstrations         research collect --config small_cpu --from gold --out DIR
  sft          imitate demonstrations      research sft --config small_cpu --data.train FILE
  validate     score held-out questions    research validate --config quickstart --ckpt_path best
  test         score the test questions    research test --config quickstart --ckpt_path best
  predict      answer questions            research predict --config quickstart --ckpt_path best
  evaluate     compare methods             research evaluate --config evaluate/quickstart
  ask          ask one question            research ask "Who ...?" --model DIR --index DIR
  data         fetch, convert, audit        research data convert --from hotpotqa FILE --out DIR
  questions    make questions of an index  research questions make --index DIR --out DIR
  corpus       read a folder of documents  research corpus build FOLDER --out corpus.jsonl
  index        make an index, search it    research index build --corpus FILE --out DIR
  export       write a Hugging Face folder research export --ckpt FILE --out DIR
  serve-policy sample for others (HTTP)    research serve-policy DIR --port 8000
  serve-agent  answer for others (HTTP)    research serve-agent --run DIR --port 8000
  replay       play recorded rollouts      research replay RUN
  rescore      apply another reward        research rescore RUN --reward em
  page         a run as a page             research page RUN
  compare      runs beside each other      research compare RUN RUN
  runs         list runs, a line each      research runs DIR
  configs      list shipped configs        research configs
  env          facts for a bug report      research env
  schema       the config, for editors     research schema
  completion   completion for a shell      research completion bash
  plan         memory and time of a run    research plan --config quickstart
  lint-reward  look for holes in a reward  research lint-reward default

`research COMMAND --help` shows the options of a command. --version prints the version; --debug, or
RESEARCH_TRACEBACK=1, shows the traceback of an error. --trust lets what came with a folder (a run,
a checkpoint, a model) run code and read environment variables; see docs/trust.md.
"""

_DESK = ("page", "compare", "runs", "configs", "env", "schema", "completion")

# Each command imports its own world, so that `research index` need not wait for Lightning.
COMMANDS = {
    **dict.fromkeys(("fit", "validate", "test", "predict"), "research_rl.trainers.cli.fit"),
    "evaluate": "research_rl.trainers.evaluate.command",
    "ask": "research_rl.trainers.cli.ask",
    "collect": "research_rl.trainers.demonstrations.command",
    "sft": "research_rl.trainers.demonstrations.sft",
    "data": "research_rl.trainers.audit.command",
    "questions": "research_rl.trainers.make_questions.command",
    "corpus": "research_rl.envs.documents.command",
    "index": "research_rl.envs.retrieval.cli",
    "export": "research_rl.trainers.cli.export",
    "serve-policy": "research_rl.trainers.cli.serve_policy",
    "serve-agent": "research_rl.trainers.cli.serve_agent",
    "replay": "research_rl.trainers.recorder.command",
    "rescore": "research_rl.trainers.recorder.rescore",
    "plan": "research_rl.trainers.plan.command",
    "lint-reward": "research_rl.envs.rewards.lint",
    **{name: f"research_rl.trainers.desk.{name}" for name in _DESK},
}
"""Where the ``main(args)`` of each command is."""


def main() -> None:
    """Run the console script; a user's mistake exits with status 2 and a line that names it."""
    _mend_streams()
    if "--debug" in sys.argv:  # an environment variable reaches the processes of other ranks too
        sys.argv.remove("--debug")
        os.environ[TRACEBACK] = "1"
    if "--trust" in sys.argv:
        sys.argv.remove("--trust")
        os.environ[TRUST] = "1"
    # A user's own module (--model.algorithm my_file.MyRule) lies where the command is run. It comes
    # last: no file there takes the place of an installed package.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        _dispatch(sys.argv[1:])
        sys.stdout.flush()
    except Exception as caught:
        if _nobody_reads(caught):
            sys.exit(PIPE_CLOSED)
        error = _plainly(caught)
        if os.environ.get(TRACEBACK) or not is_users_mistake(error):
            raise
        line = printable(f"research: error: {' '.join(str(error).split())}")
        print(line, file=sys.stderr)
        sys.exit(FAILED)


def _mend_streams() -> None:
    """Let output that the terminal cannot encode be escaped, and have streams where all are closed.

    ``research ask <&-`` has no stdin at all, and a service that is started at boot no stdout.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            empty = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115  (until the end)
            setattr(sys, name, empty)
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _nobody_reads(error: Exception) -> bool:
    """Whether what reads the output has ended, ``head`` for instance; then nothing is printed."""
    if not isinstance(error, BrokenPipeError) or not hasattr(select, "poll"):
        return False
    looks = select.poll()
    looks.register(sys.stdout.fileno(), select.POLLERR)
    if not looks.poll(0):  # another pipe: a server's connection
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _plainly(error: Exception) -> Exception:
    """The error to tell of; that of a file which torch refused to unpickle says what may be done.

    A plug-in of Lightning that a config names reads checkpoints by itself.
    """
    if isinstance(error, pickle.UnpicklingError):
        return TrustError(not_plain("the checkpoint", error))
    return error


def _dispatch(args: list[str]) -> None:
    command = args[0] if args else "--help"
    if command in ("--help", "-h"):
        print(HELP, end="")
    elif command == "--version":
        print(f"research-rl {version('research-rl')}")
    elif command in COMMANDS:
        with careful(args):
            if command in CHECKED:
                if show_help(command, args[1:]):
                    return
                check_usage(command, args[1:])
            check_there(command, args[1:])
            import_module(COMMANDS[command]).main(args[1:])
    else:
        hint = did_you_mean(command, COMMANDS)
        raise UsageError(f"no command {command!r} (known: {', '.join(COMMANDS)}){hint}")
