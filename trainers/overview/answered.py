"""Evaluations in the folders of two runs, held against each other cell by cell.

A cell is a method with a model on a data set. ``pairs_of(first, other)`` pairs the cells of the
same name. Where each run has one model for a method on a data set, these two are paired whatever
they are called, as when every run names its model after itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from research_rl.trainers.overview.folder import JsonRow, RunFolder, texts

_Rows = dict[str, JsonRow]
"""Rows by id and text of the question: two files may number different questions alike."""
_ByFolder = dict[str, _Rows]
_ByModel = dict[str, _ByFolder]


class CellPair(NamedTuple):
    """What two runs answered in cells that may be compared.

    Args:
        asked: what was asked of whom, in words.
        ours: the rows of the first run.
        theirs: the rows of the other one.
    """

    asked: str
    ours: _Rows
    theirs: _Rows


def pairs_of(first: RunFolder, other: RunFolder) -> tuple[list[CellPair], list[str]]:
    """Return the cells that both runs have, and what could not be paired, in words.

    Several evaluations below a run may hold the same cell. Then those of the same folder are
    paired.
    """
    ours, theirs = _cells_of(first), _cells_of(other)
    pairs: list[CellPair] = []
    alone: list[str] = []
    for cell in sorted(ours.keys() & theirs.keys()):
        name = " on ".join(cell)
        for said, mine, its in _models(ours[cell], theirs[cell]):
            found = list(_folders(f"{name} ({said}", mine, its))
            pairs += found
            if not found:
                alone.append(
                    f"{name} ({said}) lies in several evaluations of a run, {_listed(mine)} and "
                    f"{_listed(its)}, so it is not paired; folders of the same name would be."
                )
        if not ours[cell].keys() & theirs[cell].keys() and not _one_each(ours[cell], theirs[cell]):
            alone.append(
                f"{name} was asked of other models, {_listed(ours[cell])} and "
                f"{_listed(theirs[cell])}, so it is not paired; models of the same name would be."
            )
    return pairs, alone


def _cells_of(run: RunFolder) -> dict[tuple[str, str], _ByModel]:
    """Return the rows without an error: method and data set -> model -> folder -> rows."""
    found: dict[tuple[str, str], _ByModel] = {}
    for answers in run.answers:
        for row in answers.rows:
            if row.get("error") is None:
                models = found.setdefault((row["method"], row["dataset"]), {})
                rows = models.setdefault(row["model"], {}).setdefault(answers.folder, {})
                rows[f"{row['id']}\n{texts(row.get('question', ''))}"] = row
    return found


def _models(ours: _ByModel, theirs: _ByModel) -> Iterator[tuple[str, _ByFolder, _ByFolder]]:
    """Yield the models that are compared, in words, with what each run has of them."""
    if shared := ours.keys() & theirs.keys():
        for model in sorted(shared):
            yield f"model {model}", ours[model], theirs[model]
    elif _one_each(ours, theirs):
        (one, mine), (another, its) = *ours.items(), *theirs.items()
        yield f"models {one} and {another}", mine, its


def _one_each(ours: _ByModel, theirs: _ByModel) -> bool:
    return len(ours) == len(theirs) == 1


def _folders(name: str, ours: _ByFolder, theirs: _ByFolder) -> Iterator[CellPair]:
    if len(ours) == len(theirs) == 1:
        (mine,), (its,) = ours.values(), theirs.values()
        yield CellPair(f"{name})", mine, its)
        return
    for folder in sorted(ours.keys() & theirs.keys()):
        yield CellPair(f"{name}, {_called(folder)})", ours[folder], theirs[folder])


def _called(folder: str) -> str:
    return "the run's own folder" if folder == "." else folder


def _listed(names: Mapping[str, object]) -> str:
    return " / ".join(map(_called, sorted(names)))
