"""The settings that the rows of a folder were made with.

They are compared before rows are added, so that rows of two configurations never mix.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from research_rl.envs.system import write_whole
from research_rl.trainers.evaluate.measures import Cell

FILE = "settings.json"


class EvaluationSettings:
    """The settings of each cell of the grid that has rows, as a file of JSON.

    Args:
        folder: of the evaluation.

    Raises:
        ValueError: the file is there and is not readable.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._cells: dict[str, Any] = {}
        if self.path.is_file():
            try:
                self._cells = json.loads(self.path.read_text("utf-8"))["cells"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path} must hold the settings of an evaluation, got something else "
                    f"({error}); use another folder with --out"
                ) from error

    def check(
        self,
        cell: Cell,
        settings: Mapping[str, Any],
        *former: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Refuse settings that differ from those that the cell's rows were made with.

        Args:
            cell: of the grid.
            settings: those of now.
            former: each gives the same settings as an earlier version wrote them; asked for if
                they differ.

        Raises:
            ValueError: they differ; the message names each setting with both values.
        """
        known = self._cells.get(_name(cell))
        now = json.loads(json.dumps(settings))
        if known is None or known == now:
            return
        if any(known == json.loads(json.dumps(told())) for told in former):
            return
        changes = list(setting_differences(known, now))
        shown = "; ".join(changes[:4]) + ("; ..." if len(changes) > 4 else "")
        raise ValueError(
            f"{self.path.parent} holds rows of {cell} made with other settings: {shown}; "
            "give --out another folder, or remove this one to begin anew"
        )

    def add(self, cells: Mapping[Cell, Mapping[str, Any]]) -> None:
        """Record the settings of cells; the file is replaced whole or not at all."""
        self._cells |= {_name(cell): dict(settings) for cell, settings in cells.items()}
        write_whole(self.path, json.dumps({"cells": self._cells}, indent=1))


def setting_differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Yield ``sampling.temperature was 0.0, is 1.0`` for each value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{where}.{key}" if where else str(key)
            yield from setting_differences(old.get(key), new.get(key), inner)
    elif _are_alike(old, new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from setting_differences(*pair, f"{where}[{number}]")
    elif old != new:
        yield f"{where} was {json.dumps(old)}, is {json.dumps(new)}"


def _are_alike(old: Any, new: Any) -> bool:
    """Whether both are lists of as many objects, such as the parts of a retriever."""
    both = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    return both and all(isinstance(one, dict) for one in [*old, *new])


def _name(cell: Cell) -> str:
    return json.dumps(list(cell))
