"""Vectors on disk, written in blocks and read in blocks: memory never holds them all."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from research_rl.envs.retrieval.encoders import Vectors
from research_rl.envs.retrieval.vectors.faiss_types import import_faiss

BLOCK = 4096  # vectors encoded together; a build that goes on starts at a multiple


class VectorFile:
    """Rows of numbers in a raw file, behind a header of any length.

    Args:
        path: the file; need not exist.
        dim: numbers a row.
        half: 16 bits a number instead of 32.
        header: what the file begins with.
    """

    def __init__(self, path: Path, dim: int, half: bool = False, header: bytes = b"") -> None:
        self.path, self.dim, self.header = path, dim, header
        self.dtype = np.dtype(np.float16 if half else np.float32)

    def __len__(self) -> int:
        """Whole rows that are there."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        return max(0, size - len(self.header)) // self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.dim * self.dtype.itemsize

    def cut(self, rows: int) -> None:
        """Keep that many rows, and the header; make the file if there is none."""
        mode = "r+b" if self.path.is_file() else "w+b"
        with self.path.open(mode) as file:
            file.write(self.header)
            file.truncate(len(self.header) + rows * self._row_bytes)

    def append(self, vectors: Vectors) -> None:
        """Write rows behind those that are there, and wait until the disk has them."""
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(vectors, self.dtype).data)
            file.flush()
            os.fsync(file.fileno())

    def read(self, start: int, stop: int) -> Vectors:
        """Return rows as float32 (stop - start, dim)."""
        offset = len(self.header) + start * self._row_bytes
        flat = np.fromfile(self.path, self.dtype, (stop - start) * self.dim, offset=offset)
        return flat.reshape(-1, self.dim).astype(np.float32, copy=False)


class VectorParts:
    """Several files read as one, in their order."""

    def __init__(self, parts: Sequence[VectorFile]) -> None:
        self.parts = list(parts)
        self.dim = self.parts[0].dim
        self._starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def blocks(self, rows: int = BLOCK) -> Iterator[tuple[int, Vectors]]:
        """Yield the position of each block's first row, and the block: float32 (<= rows, dim)."""
        for first, part in zip(self._starts[:-1].tolist(), self.parts, strict=True):
            for start in range(0, len(part), rows):
                yield first + start, part.read(start, min(start + rows, len(part)))

    def sample(self, count: int, seed: int = 0) -> Vectors:
        """Return ``count`` different rows, drawn at random, in their order."""
        count = min(count, len(self))
        chosen = np.random.default_rng(seed).choice(len(self), count, replace=False)
        chosen.sort()
        out = np.empty((count, self.dim), np.float32)
        for first, part, end in zip(self._starts, self.parts, self._starts[1:], strict=False):
            low, high = np.searchsorted(chosen, [first, end])
            for i in range(int(low), int(high)):
                row = int(chosen[i] - first)
                out[i] = part.read(row, row + 1)[0]
        return out


def streamed_header(index: Any, count: int) -> bytes | None:
    """Return what a FAISS file of ``count`` vectors begins with, if nothing but codes follows.

    So a flat or scalar-quantised index of any size is written block by block. Whether a type is
    stored like that is tried on one vector, not assumed; None if it is not.

    Args:
        index: trained and empty.
    """
    faiss = import_faiss()
    if not isinstance(index, faiss.IndexFlatCodes):
        return None
    probe = faiss.clone_index(index)
    vector = np.ones((1, index.d), np.float32)
    probe.add(vector)
    empty, one = (faiss.serialize_index(i).tobytes() for i in (index, probe))
    code = index.sa_encode(vector).tobytes()
    size_at = len(one) - len(code) - 8
    size = int.from_bytes(one[size_at : size_at + 8], "little")
    expected = empty[:8] + struct.pack("<q", 1) + empty[16:size_at] + size.to_bytes(8, "little")
    if size not in (index.d, len(code)) or one != expected + code or len(empty) != size_at + 8:
        return None
    return bytes(one[:8] + struct.pack("<q", count) + one[16:size_at]) + struct.pack(
        "<q", size * count
    )


def codes_behind_header(path: Path, index: Any) -> tuple[bytes, int] | None:
    """Return the header of a FAISS file that nothing but codes follows, and what it counts.

    Args:
        path: the file.
        index: what was read from it.

    Returns:
        The header and the number of units a vector in its last field; None for other files.
    """
    faiss = import_faiss()
    if not isinstance(index, faiss.IndexFlatCodes) or not index.ntotal:
        return None
    count, code = int(index.ntotal), int(index.code_size)
    length = path.stat().st_size - count * code
    with path.open("rb") as file:
        header = file.read(max(length, 0))
    if len(header) < 24 or int.from_bytes(header[8:16], "little") != count:
        return None
    unit, rest = divmod(int.from_bytes(header[-8:], "little"), count)
    return (header, unit) if not rest and unit in (index.d, code) else None


def encode_codes(index: Any, vectors: Vectors) -> npt.NDArray[np.uint8]:
    """Return the codes under which an index keeps vectors: uint8 (n, code size)."""
    codes: npt.NDArray[np.uint8] = index.sa_encode(np.ascontiguousarray(vectors))
    return codes


def read_vectors(path: Path, mmap: bool | None) -> Any:
    """Read a FAISS file, or map it into memory; None maps it if it fills more than half of that."""
    faiss = import_faiss()
    if mmap is None and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        mmap = path.is_file() and path.stat().st_size > memory // 2
    if not mmap:
        return faiss.read_index(str(path))
    with path.open("rb") as file:
        lists = file.read(2) == b"Iw"  # IVF keeps its lists on disk, others map their codes
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP if lists else faiss.IO_FLAG_MMAP_IFC)
