"""Files that a command line names, looked for before the libraries that would read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_QUESTIONS, _ROLLOUTS, _INDEX = "questions", "rollouts", "index"
_OF_A_FIT = {"data.train": _QUESTIONS, "data.val": _QUESTIONS}
_READ: Mapping[str, Mapping[str, str]] = {
    "fit": _OF_A_FIT,
    "sft": {"data.train": _ROLLOUTS, "data.val": _QUESTIONS},
    "validate": {"data.val": _QUESTIONS},
    "test": {"data.test": _QUESTIONS},
    "predict": {"data.test": _QUESTIONS},
    "collect": {"questions": _QUESTIONS},
    "data audit": {"questions": _QUESTIONS, "train": _QUESTIONS, "index": _INDEX},
    "questions make": {"questions": _QUESTIONS, "index": _INDEX},
    "ask": {"index": _INDEX},
    "serve-agent": {"index": _INDEX},
}
"""What each command reads of what its options name. What a fit may make itself is not among it."""


def check_there(command: str, args: Sequence[str]) -> None:
    """Raise what the command would raise in the end, if a file that it must read is not there.

    Args:
        command: of ``research``.
        args: its arguments; only what they name is looked for, not what a config names.

    Raises:
        QuestionError: a file of questions is not there.
        IndexFolderError: an index is not there.
        FileNotFoundError: a file of rollouts is not there.
    """
    if any(arg in ("-h", "--help") for arg in args):
        return
    if command not in _READ and args:
        command, args = f"{command} {args[0]}", args[1:]
    for kind, value in _named(args, _READ.get(command, {})):
        if value and not Path(value).exists() and not any(mark in value for mark in ("://", "${")):
            _tell(kind, value)


def _named(args: Sequence[str], read: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Kind and value of the options that name what is read."""
    for place, word in enumerate(args):
        name, given, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in read:
            continue
        following = value if given else "".join(args[place + 1 : place + 2])
        if not following.startswith("--") and following not in ("null", "None"):
            yield read[name], following


def _tell(kind: str, value: str) -> None:
    if kind == _INDEX:
        from research_rl.envs.retrieval.index import read_manifest

        read_manifest(value)
    elif kind == _ROLLOUTS:
        raise FileNotFoundError(no_rollouts(value))
    else:
        from research_rl.envs.questions import SPLIT_MARK, is_hub_name, open_rows

        file, mark, _ = value.rpartition(SPLIT_MARK)
        file = file if mark else value
        if not Path(file).exists() and not is_hub_name(file):
            open_rows(file)


def no_rollouts(path: str | Path) -> str:
    """Return what is said of a file of rollouts that is not there."""
    return f"there is no rollout file {path}; make one: research collect --out FOLDER"
