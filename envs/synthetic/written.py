"""The world as a folder of files: written once, finished where it was cut short, over nothing else.

``world.json`` is written last and says what the folder holds. ``.world/begun.json`` is written
first and goes last of all: where it stands alone, a write was cut short and is done again. Without
either, files of these names are somebody else's, unless they are what would be written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from research_rl.envs.system import alone_in, sha256_of, write_whole

_WORLD, WORLD_CORPUS, _INDEX = "world.json", "corpus.jsonl", "index"
_OWN = ".world"
"""Folder for the lock and the mark of a write, in that of the world."""
_BEGUN = "begun.json"
_PATIENCE = 600.0
"""Seconds to wait for another process that writes a world there; a world takes a few."""
_REMEDY = "name another folder (data.world.folder)"
WorldLines = Callable[[], Iterable[str]]


def read_world(folder: Path) -> Any:
    """Return what ``world.json`` says, None where there is none or it is no JSON."""
    try:
        return json.loads((folder / _WORLD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_folder(
    target: Path,
    manifest: Mapping[str, object],
    files: Mapping[str, WorldLines],
    index: Callable[[Path, Path], object],
    replace: bool = False,
) -> None:
    """Write a world, unless the folder holds it; one process at a time, the others wait for it.

    Args:
        target: the folder.
        manifest: what decides the content of the files, in types that JSON gives back.
        files: name and lines of each; the corpus is among them.
        index: makes an index of a corpus in a folder.
        replace: write over a world of other settings.

    Raises:
        FileExistsError: the folder holds files of these names that are no world, or a world of
            other settings that is not to be replaced; or another process does not end writing.
    """
    if read_world(target) == manifest:
        return
    if (target / _WORLD).exists():  # before anything is made in a folder of somebody else
        _check_settings(target, manifest, replace)
    what = "is where another process writes a world"
    with alone_in(target / _OWN, what, _REMEDY, patience=_PATIENCE):
        if read_world(target) == manifest:
            return
        begun = target / _OWN / _BEGUN
        if (target / _WORLD).exists():
            _check_settings(target, manifest, replace)
        elif not begun.is_file():
            _check_free(target, files)
        text = json.dumps(manifest, indent=2)
        write_whole(begun, text)
        (target / _WORLD).unlink(missing_ok=True)
        for name, lines in files.items():
            write_whole(target / name, lines())
        index(target / WORLD_CORPUS, target / _INDEX)
        write_whole(target / _WORLD, text)
        begun.unlink()


def _check_settings(target: Path, manifest: Mapping[str, object], replace: bool) -> None:
    """Refuse a world of other settings; one of an older format alone is written anew."""
    held = read_world(target)
    if not isinstance(held, dict) or "format" not in held:
        raise FileExistsError(
            f"{target / _WORLD} must be what a world was written with, got something else; "
            f"{_REMEDY}, or move the file away"
        )
    names = [name for name in {**manifest, **held} if held.get(name) != manifest.get(name)]
    if replace or names == ["format"]:
        return
    there = ", ".join(f"{name} {json.dumps(held.get(name, 0))}" for name in names)
    asked = ", ".join(f"{name} {json.dumps(manifest.get(name, 0))}" for name in names)
    raise FileExistsError(
        f"{target} must hold the world that is asked for ({asked}), got one of other settings "
        f"({there}), which another run may use; {_REMEDY}, give the settings of this one, or "
        f"delete {target}"
    )


def _check_free(target: Path, files: Mapping[str, WorldLines]) -> None:
    """Refuse files that no world has written."""
    others = list(_others(target, files))
    if others:
        raise FileExistsError(
            f"{target} must be free for a synthetic world, or hold one, got {', '.join(others)} "
            f"of something else and no {_WORLD}; {_REMEDY}, or move these away"
        )


def _others(target: Path, files: Mapping[str, WorldLines]) -> Iterator[str]:
    """Names of what is there and differs from what would be written."""
    for name, lines in files.items():
        file = target / name
        if file.exists() and not (file.is_file() and _is_written(file, lines())):
            yield name
    if (target / _INDEX).exists() and not _is_index_of(target / WORLD_CORPUS, target / _INDEX):
        yield _INDEX


def _is_written(file: Path, lines: Iterable[str]) -> bool:
    """Whether a file has these lines and no others."""
    with file.open("rb") as there:
        same = all(there.readline() == line.encode("utf-8") for line in lines)
        return same and not there.read(1)


def _is_index_of(corpus: Path, index: Path) -> bool:
    """Whether a folder is an index of this corpus."""
    from research_rl.envs.retrieval.index import IndexFolderError, read_manifest

    try:
        made_of = read_manifest(index)["corpus"]["sha256"]
    except IndexFolderError:
        return False
    return corpus.is_file() and bool(made_of == sha256_of(corpus))
