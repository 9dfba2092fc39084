"""What is in the files that a config names, by which kept settings tell that it has changed.

A path says where something is, and another thing may lie there tomorrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research_rl.envs.retrieval.index import MANIFEST, IndexFolderError, index_contents
from research_rl.envs.system import digest_stamp

Stamp = Callable[[Path], Any]
"""How a file is identified."""


def weight_files(folder: Path) -> list[Path]:
    """Return the files with a model's weights: as transformers does, safetensors before others."""
    if not folder.is_dir():
        return []
    found = sorted(folder.glob("*.safetensors"))
    if not any(folder.glob("model*.safetensors")):
        found += sorted(folder.glob("pytorch_model*.bin"))
    return found


def with_contents(value: Any, stamp: Stamp = digest_stamp) -> Any:
    """Return settings in which what is in a folder stands for its path.

    That holds for folders of an index and of a model's weights. So one that was moved is the same
    one, and another one in its place is another.

    Args:
        value: plain data, such as the ``class_path`` and ``init_args`` of a retriever.
        stamp: how a file of weights is identified.
    """
    if isinstance(value, Mapping):
        return {key: with_contents(inner, stamp) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_contents(inner, stamp) for inner in value]
    if not isinstance(value, str) or not value or not _is_folder(value):
        return value
    if (Path(value) / MANIFEST).is_file():
        try:
            return {"index": index_contents(value)}
        except IndexFolderError:  # a manifest of something else
            return value
    files = weight_files(Path(value))
    return {"weights": [stamp(file) for file in files]} if files else value


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):  # a text that can be no name
        return False
