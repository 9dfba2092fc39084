"""The table of the options: what the real parsers take, readable without what they import.

A row is ``{"name": "data.batch_size", "kind": "value", "type": "int", "default": 16, ...}``. The
table is a file that ``make options`` writes; a test compares it with the real parsers.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

from jsonargparse.typing import PositiveInt

from research_rl.envs.system import write_whole

TABLE = Path(__file__).with_name("options.json")
"""The file of the table."""
_Kind: TypeAlias = Literal["value", "section", "flag", "config"]
_NAMES = {
    **{kind.__name__: kind for kind in (bool, int, float, str, list, dict, tuple)},
    **{"None": None, "Any": Any, "Literal": Literal, "Path": Path, "timedelta": timedelta},
    "PositiveInt": PositiveInt,
}
"""What a type that is spelled in the table is made of; any other type is open."""
_LIGHTNING = "pytorch-lightning"


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Args:
        name: ``model.updates.group_size``.
        kind: value, or section (a group that takes a file), flag (no value), config.
        type: of a value, in Python's spelling; "" where it is a class or has several parts, which
            only the real parser can check.
        takes: the type for a reader: ``Algorithm``, ``int | None``.
        default: plain data, or a text that tells of it.
        required: it must be given.
        help: one or more sentences.
    """

    name: str
    kind: _Kind
    type: str = ""
    takes: str = ""
    default: Any = None
    required: bool = False
    help: str = ""

    @property
    def is_open(self) -> bool:
        """Whether options below it may exist, ``--model.optimizer.lr`` for instance."""
        return self.kind == "value" and not self.type


@cache
def options_of(command: str) -> dict[str, Option]:
    """Return the options of fit, validate, test, predict, sft or evaluate, by their names."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["options"]
    of_it = [row for row in rows if command in row["of"]]
    return {row["name"]: Option(**{k: v for k, v in row.items() if k != "of"}) for row in of_it}


@cache
def is_of_this_lightning() -> bool:
    """Whether the table's options of Lightning are those of the version that is installed."""
    made: str = json.loads(TABLE.read_text(encoding="utf-8"))["made_with"]
    return made == version(_LIGHTNING)


def type_of(spelled: str) -> Any:
    """Return the type that the table spells: ``int | None``, ``Literal['a', 'b']``."""
    return eval(spelled, {"__builtins__": {}}, _NAMES)


def write_table(options: Mapping[str, Iterable[Option]]) -> None:
    """Write the table; an option that several commands share has one row.

    Args:
        options: of each command.
    """
    rows: dict[str, dict[str, Any]] = {}
    for command, those in options.items():
        for option in those:
            row = {k: v for k, v in asdict(option).items() if k == "default" or v}
            known = rows.setdefault(json.dumps(row, sort_keys=True), {**row, "of": []})
            known["of"].append(command)
    lines = ",\n".join(json.dumps(row) for row in rows.values())
    head = json.dumps({"made_with": version(_LIGHTNING)})[:-1]
    write_whole(TABLE, f'{head}, "options": [\n{lines}\n]}}\n')


def option_rows(parser: Any) -> list[Option]:
    """Return the options of a parser of jsonargparse."""
    found = []
    for action in parser._actions:
        long = [s for s in action.option_strings if s.startswith("--") and not s.endswith("+")]
        kind = _KINDS.get(type(action).__name__, "value")
        if "Help" in type(action).__name__ or type(action).__name__ == "_ActionPrintConfig":
            continue
        if type(action).__name__.endswith("ConfigFile"):
            kind = "config"
        hint = getattr(action, "_typehint", None)
        found.append(
            Option(
                name=long[0].removeprefix("--"),
                kind=kind,
                type=_spelled(hint) or "" if kind == "value" else "",
                takes=_readable(hint) if kind == "value" else "",
                default=_plain(action.default) if kind in ("value", "flag") else None,
                required=bool(action.required),
                help=" ".join(str(action.help or "").replace("%%", "%").split()),
            )
        )
    return found


_KINDS: dict[str, _Kind] = {"_ActionConfigLoad": "section", "_StoreTrueAction": "flag"}


def _spelled(hint: Any) -> str | None:
    """A type in the words of _NAMES; None where it has others."""
    if hint is None or hint is type(None):
        return "None"
    if get_origin(hint) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(hint)))}]"
    parts = [_spelled(part) if part is not ... else "..." for part in get_args(hint)]
    if not parts:
        known = [name for name, kind in _NAMES.items() if kind is hint]
        return known[0] if known else None
    if None in parts:
        return None
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(map(str, parts))
    origin = getattr(get_origin(hint), "__name__", "")
    return f"{origin}[{', '.join(map(str, parts))}]" if origin in _NAMES else None


def _readable(hint: Any) -> str:
    """A type for a reader: classes by their last name, what is called by what it returns."""
    if (spelled := _spelled(hint)) is not None:
        return spelled.removeprefix("Literal")
    parts = [part for part in get_args(hint) if not isinstance(part, list)]
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(_readable(part) for part in parts)
    origin = getattr(get_origin(hint), "__name__", "")
    if origin == "Callable":
        return _readable(parts[-1])
    if parts:
        return f"{origin.lower()}[{', '.join(map(_readable, parts))}]"
    return str(getattr(hint, "__name__", hint))


def _plain(default: Any) -> Any:
    """A default as JSON has it; a class by its last name."""
    if hasattr(default, "as_dict"):
        default = default.as_dict()
    if isinstance(default, dict) and "class_path" in default:
        return str(default["class_path"]).rpartition(".")[2]
    try:
        return json.loads(json.dumps(default))
    except TypeError:
        return str(default)
