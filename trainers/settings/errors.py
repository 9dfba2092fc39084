"""Errors that a user can mend, each told in one line instead of a traceback.

For example: ``model.seed: Expected a <class 'int'>. Got value: x``. An error from deep inside a
library is taken for a bug and keeps its traceback.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from traceback import walk_tb

from research_rl.envs import RetrieverUnavailable
from research_rl.envs.system import TrustError, did_you_mean

TRACEBACK = "RESEARCH_TRACEBACK"
"""Environment variable that asks for tracebacks all the same."""
PLUG_POINTS = {  # where a config names a class, and what it must be
    "model.algorithm": "research_rl.trainers.algorithms.Algorithm",
    "model.credit": "research_rl.trainers.credit.Credit",
    "model.engine": "research_rl.agents.types.Engine",
    "model.price": "research_rl.trainers.credit.Price",
    "trainer.callbacks": "pytorch_lightning.Callback",
    "trainer.logger": "pytorch_lightning.loggers.Logger",
}
_MANY = 20  # names that still fit on a line

# What jsonargparse says, for it has no structured errors. Each is provoked in the tests through a
# real parser, so that a version which words it otherwise is noticed.
_KEY = re.compile(r'Parser key "([^"]+)":')
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_OTHER_CLASS = re.compile(r"Import path (?:(\S+) )?does not correspond to a subclass of (\w+)")
_NO_ARGUMENT = re.compile(r"class_path '([\w.]+)': Option '(\w+)' is not accepted")
_OF_CLASSES = (_NO_CLASS, _OTHER_CLASS, _NO_ARGUMENT)
_NO_OPTION = re.compile(r"unrecognized arguments: --([\w.]+)")
_NO_KEY = re.compile(r"does not accept option '([\w.]+)'")
_DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")
_NO_SUBCLASS = "Not a valid subclass"
_OR_NONE = "Expected a <class 'NoneType'>"
_NOISE = re.compile(r"Expected a path but|Does not validate against|Subtypes:|Errors:|Given value")


class UsageError(ValueError):
    """The command line makes no sense."""


def is_users_mistake(error: BaseException) -> bool:
    """Whether an error is the user's to mend, so that one line says enough.

    True for files that are missing or do not open, and for errors that this package raises on
    purpose. An error from deep inside a library is a bug of ours and keeps its traceback.
    """
    if isinstance(error, OSError | RetrieverUnavailable | TrustError | UsageError):
        return True
    # an interpolation of a config fails, or the file is no YAML and named in the message
    if type(error).__module__.startswith(("omegaconf.", "yaml.")):
        return True
    if type(error).__name__ == "MisconfigurationException":  # Lightning's word for it
        return True
    ours = (ValueError, TypeError, ImportError, FloatingPointError, NotImplementedError)
    return isinstance(error, ours) and _raised_in(error).startswith("research_rl.")


def _raised_in(error: BaseException) -> str:
    """Name of the module whose ``raise`` made the error."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")) if frames else ""


def one_line(message: str, options: Iterable[str] = ()) -> str:
    """Return ``message`` in one line, with the known names where a name is unknown.

    Args:
        message: what jsonargparse says, often several lines, one for each type of a union.
        options: the option strings of the command, to suggest from.
    """
    key, body = _split(message)
    lines = [line.strip(" -") for line in body.splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    lines = _joined(lines)
    if any(wrong.search(line) for line in lines for wrong in _OF_CLASSES):
        lines = [line for line in lines if line != _OR_NONE]  # no class was to be named at all
    explained = [_explain(line, key, list(options)) for line in lines]
    if _NO_SUBCLASS in body:  # the other members of the union say nothing more
        explained = explained[:1]
    return (f"{key}: " if key else "") + "; ".join(explained)


def _split(message: str) -> tuple[str, str]:
    """``Parser key "model.seed": reason`` is ("model.seed", "reason")."""
    found = _KEY.search(message)
    if found is None:
        return "", message
    return found[1], message[found.end() :]


def _joined(lines: Sequence[str]) -> list[str]:
    """The lines, where one that ends with a colon takes the next one in."""
    joined: list[str] = []
    for line in lines:
        if joined and joined[-1].endswith(":"):
            joined[-1] += f" {line}"
        else:
            joined.append(line)
    return joined


def _explain(line: str, key: str, options: list[str]) -> str:
    if found := _DENIED.search(line):
        return (
            f"{found[1]} is a class or function of another package, and the config came with a "
            "folder that may be somebody else's; add --trust to the command if you trust "
            "everything in that folder"
        )
    if found := _NO_CLASS.search(line):
        return f"no class {found[1]!r}{_known_classes(key, found[1])}"
    if found := _OTHER_CLASS.search(line):
        name = found[1] or "what it names"  # in a union jsonargparse leaves the name out
        return f"{name} is no {found[2]}{_known_classes(key, name)}"
    if found := _NO_ARGUMENT.search(line):
        taken = list(inspect.signature(_class(found[1])).parameters)
        name = found[1].rpartition(".")[2]
        return f"{name} has no option {found[2]!r}{_suggest(found[2], taken)}"
    if found := _NO_OPTION.search(line):
        return f"no option --{found[1]}{_suggest('--' + found[1], options)}"
    if found := _NO_KEY.search(line):
        hint = did_you_mean(f"--{found[1]}", options).replace("--", "")
        return f"no option {found[1]!r}{hint}"
    return line


def _known_classes(key: str, name: str) -> str:
    if key not in PLUG_POINTS:
        return ""
    return _suggest(name, sorted(_subclasses(_class(PLUG_POINTS[key])))) + (
        "; a class of your own is named with its module, as my_file.MyClass"
    )


def _subclasses(base: type) -> set[str]:
    # jsonargparse derives a LazyInstance_* from every class that is a default.
    classes: list[type] = base.__subclasses__()
    names = {c.__name__ for c in classes}
    found = {n for n in names if not n.startswith(("_", "LazyInstance_"))}
    return found.union(*(_subclasses(c) for c in classes))


def _suggest(name: str, known: Sequence[str]) -> str:
    hint = did_you_mean(name, known)
    few = len(known) <= _MANY or (not hint and len(known) <= 3 * _MANY)
    return (f" (known: {', '.join(known)})" if few else "") + hint


def _class(path: str) -> type:
    """The class of that name, where its module is imported: a message may quote any text."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else object
