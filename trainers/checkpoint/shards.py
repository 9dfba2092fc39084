"""Checkpoints in shards: what in them would run code when it is read is refused before.

torch keeps the list of a checkpoint's tensors as a pickle in ``.metadata``, and what is no tensor
as small pickles between the tensors. A crafted pickle can call anything. So both are read here
first: the list by an unpickler that knows torch's own few classes, the rest with ``weights_only``.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from research_rl.envs.system import not_plain
from research_rl.trainers.lightning_internals import sharded_metadata

METADATA = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_KNOWN = {
    *(
        (_METADATA, name)
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
            *("BytesStorageMetadata", "TensorStorageMetadata", "ChunkStorageMetadata"),
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *(("pathlib", name) for name in ("Path", "PosixPath", "PurePosixPath")),
    *(("pathlib", name) for name in ("WindowsPath", "PureWindowsPath")),
    *(("pathlib._local", name) for name in ("Path", "PosixPath", "WindowsPath")),  # Python 3.13
}


class UnsafeCheckpointError(OSError):
    """A checkpoint holds something that would run code when it is read."""


class _Unpickler(pickle.Unpickler):
    """Makes torch's own few classes of a checkpoint's list, and dtypes; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def load_plain(source: Any, where: Path | str | None = None, **how: Any) -> Any:
    """Return what ``torch.load`` reads of tensors, numbers and text; nothing is run.

    Args:
        source: a path or an open file.
        where: its name in messages; None is the path.
        how: further arguments of ``torch.load``.

    Raises:
        UnsafeCheckpointError: it holds more than that.
    """
    try:
        return torch.load(source, map_location="cpu", weights_only=True, **how)
    except pickle.UnpicklingError as error:
        raise unsafe(where or source, error) from error


def unsafe(where: Any, error: Exception) -> UnsafeCheckpointError:
    """Return the error of a checkpoint that holds more than tensors, numbers and text."""
    return UnsafeCheckpointError(not_plain(where, error))


def check_shards(folder: Path) -> None:
    """Refuse a checkpoint in shards that would run code when it is read.

    Raises:
        UnsafeCheckpointError: it would, or it is not what torch writes.
    """
    try:
        with (folder / METADATA).open("rb") as file:
            metadata = _Unpickler(file).load()
        for index, stored in metadata.storage_data.items():
            kind = type(metadata.state_dict_metadata[index.fqn]).__name__
            place = PurePosixPath(stored.relative_path)
            if place.is_absolute() or ".." in place.parts:
                raise pickle.UnpicklingError(f"it names the file {place} outside of the folder")
            if kind == "BytesStorageMetadata":
                with (folder / place).open("rb") as file:
                    file.seek(stored.offset)
                    content = io.BytesIO(file.read(stored.length))
                load_plain(content, folder)
        extra = folder / sharded_metadata()
        if extra.is_file():
            load_plain(extra, mmap=True)
    except (FileNotFoundError, UnsafeCheckpointError):
        raise
    except Exception as error:  # a crafted file can fail in any way
        raise unsafe(folder, error) from error
