"""The command ``research schema``: a JSON schema of the config, for completion in editors.

An editor with the YAML language server reads it where a config's first line says so::

    # yaml-language-server: $schema=research.schema.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import _completions_jsonschema

from research_rl.envs.system import CommandLine, printable, write_whole

_BASE = {
    "type": "string",
    "description": "The config that this one changes: a file beside it, or a shipped one.",
}

_OWN_CLASS = {
    "type": "object",
    "description": "A class of your own, by its module and name.",
    "properties": {
        "class_path": {
            "type": "string",
            "pattern": r"^(?!(research_rl|torch|pytorch_lightning|lightning)\.)\w+(\.\w+)+$",
        },
        "init_args": {"type": "object"},
        "dict_kwargs": {"type": "object"},
    },
    "required": ["class_path"],
}

_NAMED = ("research_rl", "torch", "pytorch_lightning", "lightning_fabric", "builtins")
"""Packages whose classes are described; others are known by their pattern alone."""

_ANY_CLASS = {
    "type": "object",
    "properties": {
        "class_path": {"type": "string"},
        "init_args": {"type": "object"},
        "dict_kwargs": {"type": "object"},
    },
    "additionalProperties": False,
}


def main(args: Sequence[str]) -> None:
    """Run ``research schema`` with these arguments."""
    parser = CommandLine(
        prog="research schema",
        description="Write the JSON schema of the configs of research fit, for editors.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("research.schema.json"), help="default %(default)s"
    )
    given = parser.parse_args(args)
    text = json.dumps(config_schema(), separators=(",", ":"))
    print(f"wrote {printable(str(write_whole(given.out, text + chr(10))))}")
    print(f"say in a config's first line: # yaml-language-server: $schema={given.out.name}")


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of what ``research fit --config`` takes."""
    parser = _fit_parser()
    with _classes_that_a_config_names():
        found = json.loads(parser.get_completion_script("jsonschema"))
    schema: dict[str, Any] = _for_parts(found)
    schema["properties"]["base"] = _BASE
    model = schema["properties"]["model"]["properties"]
    model["lr_scheduler"]["anyOf"].append(_ANY_CLASS)  # described as a text alone
    return schema


@contextmanager
def _classes_that_a_config_names() -> Iterator[None]:
    """Have jsonargparse describe only classes of ours, of Lightning and of torch.

    It would describe every subclass that the process has loaded, with all parameters: of torch's
    ``Module`` these are thousands once many models have been imported. So modules are described
    only where a class of ours is asked for. ``type``, the class of classes, cannot be asked for
    subclasses at all.
    """
    from torch import Tensor, nn

    inside: Any = _completions_jsonschema
    known = inside.get_all_subclass_paths

    def paths(kind: Any, *args: Any, **kwargs: Any) -> Any:
        foreign = not getattr(kind, "__module__", "").startswith("research_rl.")
        if foreign and isinstance(kind, type) and issubclass(kind, (nn.Module, Tensor)):
            return []
        try:
            return [path for path in known(kind, *args, **kwargs) if _is_named(path)]
        except TypeError:
            return []

    inside.get_all_subclass_paths = paths
    try:
        yield
    finally:
        inside.get_all_subclass_paths = known


def _is_named(path: str) -> bool:
    """Whether a config may name a class and finds it there; not so ``signal.itimer_error``."""
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] not in _NAMED:
        return False
    return module not in sys.modules or hasattr(sys.modules[module], name)


def _for_parts(schema: Any) -> Any:
    """A schema that a part of a config fits, too: configs are merged, so nothing is required.

    A list may be added to, as ``callbacks+: [...]``, and any value may be a reference ``${...}``.
    """
    if isinstance(schema, list):
        return [_for_parts(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _for_parts(value) for key, value in schema.items() if key != "required"}
    properties = found.get("properties")
    if any(_names_a_class(kind) for kind in found.get("anyOf", ())):
        found["anyOf"].append(_OWN_CLASS)
    if isinstance(properties, dict):
        if "const" in properties.get("class_path", {}):
            path = properties["class_path"]["const"]
            properties["class_path"] = {"enum": [path.rpartition(".")[2], path]}
        lists = {name: its for name, its in properties.items() if _takes_a_list(its)}
        properties |= {f"{name}+": its for name, its in lists.items()}
        found["properties"] = {name: _or_reference(its) for name, its in properties.items()}
    return found


def _names_a_class(schema: Any) -> bool:
    return isinstance(schema, dict) and "class_path" in schema.get("properties", {})


def _takes_a_list(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    kinds = [schema, *schema.get("anyOf", ())]
    return any(isinstance(kind, dict) and kind.get("type") == "array" for kind in kinds)


def _or_reference(schema: Any) -> Any:
    if not isinstance(schema, dict) or schema.get("type") in ("object", "string"):
        return schema
    about = {key: schema[key] for key in ("description", "default", "title") if key in schema}
    rest = {key: value for key, value in schema.items() if key not in about}
    return {**about, "anyOf": [rest, {"type": "string", "pattern": r"\$\{.*\}"}]}


def _fit_parser() -> Any:
    """The parser of ``research fit``, with which nothing is parsed."""
    from research_rl.trainers.cli import ResearchCLI, run

    class _Found(BaseException):
        """Carries the parser out of the command."""

    class OnlyParser(ResearchCLI):
        """Stops before anything is parsed."""

        def parse_arguments(self, parser: Any, args: Any) -> None:
            """Hand out the parser of the subcommand."""
            raise _Found(self._subcommand_parsers["fit"])

    try:
        run(["fit"], cli=OnlyParser)
    except _Found as found:
        return found.args[0]
    raise AssertionError("the command was parsed")
