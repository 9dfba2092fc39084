"""A parser without what the real one imports: it knows the options and their simple types.

``research fit --config quikstart`` must not wait for torch to hear that there is no such config.
The real parser reads everything again, and alone knows the options of classes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field, make_dataclass
from functools import partial
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]
from jsonargparse.typing import register_type
from omegaconf.errors import OmegaConfBaseException

from research_rl.trainers.settings import (
    TRACEBACK,
    EvaluationConfigFile,
    OneLineParser,
    ShippedConfigFile,
)
from research_rl.trainers.usage.table import Option, is_of_this_lightning, options_of, type_of


class _Unchecked:
    """What only the real parser can check; with Any, a class that it names would be imported."""

    def __init__(self, value: Any) -> None:
        self.value = value


register_type(
    _Unchecked,
    serializer=lambda held: held.value,
    deserializer=lambda value: _Unchecked(getattr(value, "as_dict", lambda: value)()),
    type_check=lambda held, kind: isinstance(held, _Unchecked),
    fail_already_registered=False,
)
CHECKED = ("fit", "validate", "test", "predict", "sft", "evaluate")
"""Commands whose options are in the table."""
_SETTINGS: dict[str, Any] = {
    **{"parser_mode": "omegaconf+", "default_env": True, "env_prefix": "RESEARCH"},
    "allow_abbrev": False,
}


class FitParser(OneLineParser):
    """A parser whose errors show somebody who named no config where to begin."""

    example = "research fit --config quickstart"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the reason."""
        named = any(arg.startswith(("-c", "--config")) for arg in sys.argv)
        if "required" in message and not named:
            message += f"; a config has it all: {self.example}"
        super().error(message, ex)


class EvaluateParser(FitParser):
    """The same for ``research evaluate``."""

    example = "research evaluate --config evaluate/quickstart"


class _Skeleton(FitParser):
    """Reads configs without what is added to a list, ``callbacks+:``; the real parser adds it."""

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse a config."""
        if "+" in content:
            with suppress(yaml.YAMLError):  # which the parser tells of
                content = yaml.safe_dump(_without_additions(yaml.safe_load(content)))
        return super().parse_string(content, *args, **kwargs)


class _EvaluateSkeleton(EvaluateParser, _Skeleton):
    pass


def _without_additions(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: _without_additions(v) for k, v in value.items() if not str(k).endswith("+")}


def check_usage(command: str, args: Sequence[str]) -> None:
    """End with status 2 and the reason where the table shows a mistake in a command line.

    Args:
        command: fit, validate, test, predict, sft or evaluate.
        args: its arguments.

    Raises:
        SystemExit: an option is unknown, lacks its value or has one of the wrong type; a config is
            not there, or says something of that kind.
        TrustError: a config that came with a run asks for more than one may.
    """
    options = _in_force(command)
    if os.environ.get(TRACEBACK) or any(_asks_help(arg) for arg in args):
        return
    kept = _without_open(args, options)
    try:
        parser = _parser(command, options)
        parser.parse_args([_subcommand(command), *kept] if command != "evaluate" else kept)
    except OmegaConfBaseException:
        return  # a reference to a part that only the real parser has, or one that it tells of


def _subcommand(command: str) -> str:
    return "fit" if command == "sft" else command


def _in_force(command: str) -> dict[str, Option]:
    """The options; those of another version of Lightning than the table's are not judged."""
    options = options_of(command)
    if is_of_this_lightning() or command == "evaluate":
        return options
    kept = {n: o for n, o in options.items() if not n.startswith("trainer.")}
    return {**kept, "trainer": Option("trainer", "value")}


def _asks_help(arg: str) -> bool:
    return arg in ("-h", "--help") or arg.partition("=")[0].endswith(".help")


def _without_open(args: Sequence[str], options: Mapping[str, Option]) -> list[str]:
    """The arguments without those that only the real parser understands."""
    kept: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and _is_beyond(name, options):
            if not value and words and not words[0].startswith("--"):
                words.pop(0)
        elif not word.startswith("--print_config"):
            kept.append(word)
    return kept


def _is_beyond(name: str, options: Mapping[str, Option]) -> bool:
    """Whether an option is part of another one: of a class, of a list that grows, of a mapping."""
    if name in options:
        return False
    parts = name.removesuffix("+").split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    found = [options[one] for one in above if one in options]
    return any(one.is_open or "dict[" in one.type for one in found) or (
        name.endswith("+") and bool(found) and found[-1].type.startswith("list[")
    )


def _parser(command: str, options: Mapping[str, Option]) -> OneLineParser:
    if command == "evaluate":
        parser: OneLineParser = _EvaluateSkeleton(prog="research evaluate", **_SETTINGS)
        parser.add_argument("-c", "--config", action=EvaluationConfigFile)
        _fill(parser, options)
        return parser
    parser = _Skeleton(prog="research", **_SETTINGS)
    inner = _Skeleton(**_SETTINGS)
    inner.add_argument("-c", "--config", action=ShippedConfigFile)
    _fill(inner, options)
    parser.add_subcommands(required=True, dest="subcommand").add_subcommand(
        _subcommand(command), inner
    )
    return parser


def _fill(parser: OneLineParser, options: Mapping[str, Option]) -> None:
    """Add the options; a section becomes a class, as it is one in the real parser."""
    for option in options.values():
        if "." in option.name or option.kind == "config":
            continue
        if option.kind == "flag":
            parser.add_argument(f"--{option.name}", action="store_true")
        elif option.kind == "section":
            parser.add_class_arguments(_section(option.name, options), option.name)
        elif option.required:
            parser.add_argument(f"--{option.name}", type=_type(option), required=True)
        else:
            parser.add_argument(f"--{option.name}", type=_type(option), default=_default(option))


def _section(name: str, options: Mapping[str, Option]) -> type:
    """A class with the options of a section as its arguments."""
    inner = [o for o in options.values() if o.name.rpartition(".")[0] == name]
    made: list[Any] = []
    for option in inner:
        short = option.name.rpartition(".")[2]
        if option.kind == "section":
            below = _section(option.name, options)
            needs = any(
                o.required and o.name.startswith(f"{option.name}.") for o in options.values()
            )
            made.append((short, below) if needs else (short, below, field(default_factory=below)))
        elif option.required:
            made.append((short, _type(option)))
        else:
            value = _default(option)
            made.append((short, _type(option), field(default_factory=partial(_same, value))))
    return make_dataclass(f"Section_{name.replace('.', '_')}", made, kw_only=True)


def _same(value: Any) -> Any:
    return value


def _type(option: Option) -> Any:
    return type_of(option.type) if option.type else _Unchecked


def _default(option: Option) -> Any:
    if not option.type:
        return _Unchecked(option.default)
    if option.type.startswith("tuple[") and option.default:
        return tuple(option.default)
    return option.default
