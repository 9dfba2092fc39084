"""Files that may be compressed, by gzip or zstandard, read as a stream of bytes."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import BinaryIO, cast

_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
COMPRESSED = (".gz", ".zst")
"""How the names of such files end."""


def is_compressed(path: Path) -> bool:
    """Return whether a file begins as one of gzip or zstandard does."""
    with path.open("rb") as file:
        return file.read(4).startswith((_GZIP, _ZSTANDARD))


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading; a compressed one gives what is in it.

    Raises:
        ImportError: it is one of zstandard, and that is not installed.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_GZIP):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if start != _ZSTANDARD:
        return path.open("rb")
    try:
        import zstandard
    except ImportError as error:
        raise ImportError(f"reading {path} needs zstandard; do pip install zstandard") from error
    return cast(BinaryIO, io.BufferedReader(zstandard.open(path, "rb")))


def inner_suffix(path: Path) -> str:
    """Return the suffix in lower case, of a compressed file that of what is in it."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix
