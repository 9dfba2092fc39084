"""The command ``research configs``: the shipped configs, a line each."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from research_rl.envs.system import CommandLine, did_you_mean
from research_rl.trainers.settings import CONFIGS, UsageError, shipped_configs

_HOW = re.compile(r"\s*(?::\s*)?(?:research \w+ )?--config .*$|\s*:\s*research \w+ .*$")
"""What a first line says of the command line: the name beside it says as much."""
_KINDS = {
    "": "runs, for research fit; put others behind them",
    "evaluate": "evaluations, for research evaluate",
}


def main(args: Sequence[str]) -> None:
    """Run ``research configs`` with these arguments."""
    parser = CommandLine(
        prog="research configs",
        description="List the shipped configs, a line each, or print one with its comments.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", help="print this one, or list those of this folder")
    parser.add_argument("--json", action="store_true", help="print names and lines as JSON")
    given = parser.parse_args(args)
    name = (given.name or "").removesuffix(".yaml").strip("/")
    every = shipped_configs()
    if name in every:
        print((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"), end="")
        return
    chosen = [one for one in every if not name or one.startswith(f"{name}/")]
    if not chosen:
        hint = did_you_mean(name, every)
        raise UsageError(f"no shipped config or folder of them is called {given.name!r}{hint}")
    lines = {one: line_about(one) for one in chosen}
    print(json.dumps(lines, ensure_ascii=False) if given.json else _table(lines))


def line_about(name: str) -> str:
    """Return what the first lines of a shipped config say that it is."""
    words: list[str] = []
    for line in (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or (words and words[-1].endswith((".", ":"))):
            break
        words += [line.lstrip("# ").rstrip()]
    said = _HOW.sub("", re.sub(r" \(docs/[^)]*\)", "", " ".join(words)))
    ended = re.match(r"(.+?[.?!])(?:\s|$)", re.sub(r"(\d)\.(\d)", "\\1\0\\2", said))
    said = (ended[1] if ended else said).replace("\0", ".")
    said = said.rstrip(" :.,")
    return said if said.endswith(("?", "!")) else f"{said}."


def _table(lines: dict[str, str]) -> str:
    wide = max(map(len, lines))
    kinds: dict[str, list[str]] = {}
    for name, said in lines.items():
        folder = PurePosixPath(name).parent.as_posix().strip(".")
        kinds.setdefault(folder, []).append(f"  {name:<{wide}}  {said}")
    ordered = sorted(kinds, key=lambda kind: (kind not in _KINDS, kind))
    heads = {kind: _KINDS.get(kind, f"{kind}, to be put behind a run's config") for kind in kinds}
    return "\n\n".join("\n".join([heads[kind], *kinds[kind]]) for kind in ordered)
