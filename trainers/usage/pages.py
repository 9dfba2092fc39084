"""The pages of ``--help``: the options used most, one group of them, or all.

``research fit --help`` is one screen. ``--help model.env`` shows what begins with that, and
``--help all`` everything, ours first and Lightning's last.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

from research_rl.envs.system import did_you_mean
from research_rl.trainers.settings import UsageError
from research_rl.trainers.usage.table import Option, options_of
from research_rl.trainers.usage.usual import OPENINGS, Opening

_ALL = "all"
_ORDER = ("config", "model", "data", "trainer")
_COLUMN = 26


def show_help(command: str, args: Sequence[str]) -> bool:
    """Print the help that a command line asks for; False where it asks for none.

    Args:
        command: one of those in the table of options.
        args: its arguments; the word behind ``--help`` is a group of options, or ``all``.

    Raises:
        UsageError: there is no such group.
    """
    place = next((i for i, arg in enumerate(args) if arg in ("-h", "--help")), None)
    if place is None:
        return False
    following = args[place + 1 : place + 2]
    group = following[0] if following and not following[0].startswith("-") else ""
    sys.stdout.write(help_page(command, group))
    return True


def help_page(command: str, group: str = "", width: int | None = None) -> str:
    """Return a page of help.

    Args:
        command: one of those in the table of options.
        group: "" is the options used most, ``all`` every option, else what their names begin with.
        width: of a line in characters; None is the terminal's, at most 100.

    Raises:
        UsageError: no option begins so.
    """
    width = min(shutil.get_terminal_size().columns, 100) if width is None else width
    if not group:
        return _short(command, width)
    options = list(options_of(command).values())
    if group != _ALL:
        wanted = group.removeprefix("--")
        options = [o for o in options if o.name == wanted or o.name.startswith(f"{wanted}.")]
        if not options:
            groups = [*_groups(command), *options_of(command), _ALL]
            raise UsageError(
                f"--help must be followed by a group of options of {command} or by all, got "
                f"{group!r} (groups: {', '.join(_groups(command))}){did_you_mean(group, groups)}"
            )
    return "\n".join(_long(sorted(options, key=_place), width)) + "\n"


def _short(command: str, width: int) -> str:
    opening = OPENINGS[command]
    lines = [f"usage: research {command} --config NAME [options]", "", opening.does, ""]
    lines += ["examples:", *_examples(opening), "", "options used most:"]
    known = options_of(command)
    for name, value, line in opening.most_used:
        given = f"--{name} {value}".strip()
        given = f"-c, {given}" if name == "config" else given
        default = _default(known[name]) if name in known else ""
        lines += _entry(given, f"{line}{default}", width)
    groups = ", ".join(_groups(command))
    by_group = f", --help GROUP one group of them: {groups}" if groups else ""
    more = [
        f"--help all shows every option ({len(known)}){by_group}.",
        "A config holds the same names; --print_config prints the sum of configs and options.",
    ]
    if "model.algorithm" in known:
        more.append("--model.algorithm.help GRPO shows the options of a class.")
    for text in more:
        lines += ["", *textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)]
    return "\n".join(lines) + "\n"


def _examples(opening: Opening) -> list[str]:
    longest = max(len(command) for command, _ in opening.examples)
    return [f"  {command:<{longest}}  {word}".rstrip() for command, word in opening.examples]


def _long(options: Iterable[Option], width: int) -> list[str]:
    lines: list[str] = []
    for option in options:
        if option.kind == "section":
            lines += ["", f"--{option.name} FILE", ""]
            continue
        takes = "" if option.kind == "flag" else f" {_spelling(option)}"
        required = " (required)" if option.required else ""
        lines.append(f"  --{option.name}{takes}{required}{_default(option)}")
        body = option.help.partition(" (type: ")[0]
        lines += textwrap.wrap(body, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        if option.is_open and option.takes and option.takes[0].isupper():
            lines.append(f"      --{option.name}.help CLASS shows the options of a class")
    return lines[1:] if lines and not lines[0] else lines


def _spelling(option: Option) -> str:
    return "FILE" if option.kind == "config" else option.takes


def _entry(given: str, line: str, width: int) -> list[str]:
    head = f"  {given}"
    if len(head) < _COLUMN - 1:
        head = f"{head:<{_COLUMN}}"
        return textwrap.wrap(line, width, initial_indent=head, subsequent_indent=" " * _COLUMN)
    wide = len(head) + 2
    if wide + len(line) <= width:
        return [f"{head}  {line}"]
    pad = " " * _COLUMN
    return [head, *textwrap.wrap(line, width, initial_indent=pad, subsequent_indent=pad)]


def _default(option: Option) -> str:
    """What is taken where the option is not given, in brackets; "" where that says nothing."""
    if option.kind != "value" or option.required or option.default is None:
        return ""
    shown = option.default if isinstance(option.default, str) else json.dumps(option.default)
    return f" (default: {shown})"


def _groups(command: str) -> list[str]:
    """The sections of a command's options, ours first."""
    found = [o.name for o in options_of(command).values() if o.kind == "section"]
    return sorted(found, key=lambda name: (_rank(name), name))


def _rank(name: str) -> int:
    top = name.partition(".")[0]
    return _ORDER.index(top) if top in _ORDER else 0


def _place(option: Option) -> tuple[int, int]:
    """Ours before Lightning's; within a section its own order."""
    return (_rank(option.name), 0 if option.kind == "config" else 1)
