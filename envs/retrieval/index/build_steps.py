"""Steps of a build, each of which can be interrupted and resumed."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from research_rl.envs.questions import BadRows
from research_rl.envs.retrieval.corpus import Corpus, CorpusError
from research_rl.envs.retrieval.encoders import Encoder
from research_rl.envs.retrieval.index.manifest import OFFSETS, VECTORS, write_json
from research_rl.envs.retrieval.vectors import (
    BLOCK,
    Metric,
    VectorFile,
    VectorParts,
    clustering_on_gpus,
    encode_codes,
    import_faiss,
    new_index,
    sample_rows,
    streamed_header,
)
from research_rl.envs.system import (
    LOCK,
    alone_in,
    clear_partial,
    file_mark,
    former_folder,
    is_unwritten,
    progress_bar,
    put_back_former,
    remove_former,
    replace_folder,
    sha256_of,
    write_whole,
)

RAW, PLAN, HASH, FITTED = "vectors.raw", "plan.json", "corpus.json", "fitted"
Advance = Callable[[int], object]


@contextmanager
def workplace(target: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """Yield the folder beside the target in which the build works: ``.NAME.building``.

    Files that an interrupted build with the same plan left there are kept and reused; those of
    another plan are removed. After an error the folder stays if it holds vectors, else it goes.

    Args:
        target: folder that the build makes.
        plan: everything that decides what vectors are made, as JSON types.

    Raises:
        FileExistsError: another process is building there.
        OSError: the disk is full; says where, what stays there and how to go on.
    """
    folder = _building(target)
    wanted = json.loads(json.dumps(plan))
    with alone_in(folder, "is the place of another build"):
        if _read(folder / PLAN) != wanted:
            for old in folder.iterdir():
                if old.name != LOCK:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            write_json(folder / PLAN, wanted)
        try:
            yield folder
        except (OSError, RuntimeError) as error:
            if not _disk_is_full(error):
                raise
            _remove_if_empty(folder)
            raise OSError(_full(error, target, folder)) from error
        finally:
            _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    """Remove the place of a build that holds no vectors yet."""
    names = (RAW, VECTORS)
    sizes = [p.stat().st_size for name in names if (p := folder / name).is_file()]
    if folder.is_dir() and max(sizes, default=0) < 4096:
        shutil.rmtree(folder)


def _disk_is_full(error: Exception) -> bool:
    """Whether the disk is behind an error; FAISS tells it as text alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return any(os.strerror(number) in str(error) for number in numbers)


def _full(error: Exception, target: Path, folder: Path) -> str:
    free = shutil.disk_usage(target.parent).free / 1e6
    said = f"{error}: the index {target} is not made ({free:.1f} MB free in {target.parent})"
    if not folder.is_dir():
        return f"{said}, and nothing is left of it; make room and start again"
    left = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    return (
        f"{said}; {left:.1f} MB of it stay in {folder}: make room, and the same command goes on "
        "from there, or remove that folder"
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class SourceFile:
    """A corpus file as it was when a build began.

    Args:
        path: where it lies.
        bytes: its size.
        sha256: of its content, by which the build of a copied or touched file goes on.
        mark: of ``file_mark``, by which a large file that nobody wrote is not read again.
    """

    path: Path
    bytes: int
    sha256: str
    mark: str

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Read a file once, and note what it is.

        Raises:
            CorpusError: there is no such file.
        """
        if not path.is_file():
            raise CorpusError(path, None, "there is no such corpus file")
        mark = file_mark(path)  # before it is read: a write meanwhile must show
        return cls(path, path.stat().st_size, sha256_of(path), mark)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from another corpus: its content, and nothing of its place or age."""
        return {"bytes": self.bytes, "sha256": self.sha256}


def check_unchanged(source: SourceFile) -> None:
    """Refuse a corpus that was changed while it was indexed.

    Raises:
        CorpusError: it was changed, so that what was built does not belong to it.
    """
    if not is_unwritten(source.path, source.mark) and sha256_of(source.path) != source.sha256:
        reason = "was changed while it was indexed; leave it as it is and start the command again"
        raise CorpusError(source.path, None, reason)


def open_corpus(
    source: SourceFile, folder: Path, progress: bool = False, strict: bool = True
) -> tuple[Corpus, int]:
    """Check the lines of the corpus, or trust an earlier check of the same content.

    Args:
        source: the file.
        folder: of the build.
        progress: show a progress bar.
        strict: refuse bad lines instead of leaving them out.

    Returns:
        The corpus, and how many lines are left out.
    """
    known = _read(folder / HASH) or {}
    if known.get("sha256") != source.sha256 or known.get("strict") is not strict:
        bad = BadRows()
        with bar("reading", source.bytes, "B", progress) as advance:
            offsets = Corpus.scan(source.path, advance, None if strict else bad)
        save_offsets(folder, offsets)
        known = source.identity | {"strict": strict, "left_out": bad.count}
        write_json(folder / HASH, known)
    return Corpus(source.path, np.load(folder / OFFSETS)), int(known["left_out"])


def save_offsets(folder: Path, offsets: npt.NDArray[np.int64]) -> None:
    """Write where each passage lies in its corpus.

    By Python's own ``write``: numpy's ``save`` says nothing where the disk takes but a part of it.

    Raises:
        OSError: the disk does not take it.
    """

    class Writes:
        """Has ``write`` alone, so that numpy cannot reach the file below it."""

        def __init__(self, file: BinaryIO) -> None:
            self.write = file.write

    def save(file: BinaryIO) -> None:
        np.lib.format.write_array(Writes(file), offsets, allow_pickle=False)

    write_whole(folder / OFFSETS, save)


def fit_encoder(encoder: Encoder, passages: Corpus, folder: Path, advance: Advance) -> None:
    """Let the encoder learn the corpus, or read what it learned before."""
    if (folder / FITTED).is_file():
        encoder.load(folder)
        return
    encoder.fit(contents_of(passages, advance))
    encoder.save(folder)
    (folder / FITTED).touch()


def contents_of(passages: Corpus, advance: Advance) -> Iterator[str]:
    """Yield the text of every passage without keeping the corpus in memory."""
    for start in range(0, len(passages), BLOCK):
        for passage in passages[start : start + BLOCK]:
            yield passage.contents
            advance(1)
        passages.forget()


def encode(
    passages: Corpus, rows: range, encoder: Encoder, file: VectorFile, advance: Advance
) -> None:
    """Write the vectors of some passages, resuming behind the whole blocks that are there.

    Raises:
        ValueError: the encoder gave NaN or infinity.
    """
    done = len(file) if len(file) == len(rows) else len(file) // BLOCK * BLOCK
    file.cut(done)
    advance(done)
    for start in range(rows.start + done, rows.stop, BLOCK):
        block = passages[start : min(start + BLOCK, rows.stop)]
        vectors = encoder.encode_passages([passage.contents for passage in block])
        if not (finite := np.isfinite(vectors).all(axis=1)).all():
            wrong = block[int(np.flatnonzero(~finite)[0])].id
            raise ValueError(f"vectors must be finite, got NaN or infinity for passage {wrong!r}")
        file.append(vectors)
        passages.forget()
        advance(len(block))


def shard_rows(count: int, shard: tuple[int, int]) -> range:
    """Return the passages of shard ``i`` of ``n``: whole blocks, so that all are encoded alike."""
    number, of = shard
    if not 0 <= number < of:
        raise ValueError(f"shard must be i/n with 0 <= i < n, got {number}/{of}")
    blocks = -(-count // BLOCK)
    first, last = (blocks * i // of for i in (number, number + 1))
    return range(min(first * BLOCK, count), min(last * BLOCK, count))


def store(
    parts: VectorParts, file: Path, factory: str, metric: Metric, memory: int, advance: Advance
) -> None:
    """Train an index on a sample and write it with all vectors.

    Types whose file is a header and codes are written block by block; others are held in memory.
    Lists are found on the GPUs where there are any.

    Args:
        memory: bytes that may be taken; a quarter bounds the training sample.
    """
    faiss = import_faiss()
    index = new_index(parts.dim, metric, factory)
    if rows := sample_rows(index, len(parts), memory):
        try:
            with clustering_on_gpus(index):
                index.train(parts.sample(rows))  # unnamed, it is freed before vectors are added
        except RuntimeError as error:
            raise ValueError(
                f"type must be one that FAISS can train on {rows} of these vectors, got {factory}: "
                f"{error}; the vectors are kept: start again with another --type"
            ) from error
    header = streamed_header(index, len(parts)) if index.is_trained else None
    if header is None:
        for _, block in parts.blocks():
            index.add(block)
            advance(len(block))
        faiss.write_index(index, str(file))
        return
    with file.open("wb") as out:
        out.write(header)
        for _, block in parts.blocks():
            out.write(encode_codes(index, block).data)
            advance(len(block))


def direct_header(dim: int, metric: Metric, count: int) -> bytes:
    """Return what the FAISS file of a flat index begins with; its vectors follow as they are."""
    header = streamed_header(new_index(dim, metric), count)
    if header is None:
        raise RuntimeError("this FAISS writes flat indexes in a way that is not known; report it")
    return header


@contextmanager
def bar(title: str, total: int, unit: str, shown: bool) -> Iterator[Advance]:
    """Yield a function that moves a progress bar on."""
    if not shown:
        yield lambda _: None
        return
    with progress_bar(total=total, desc=title, unit=unit, unit_scale=True, leave=False) as drawn:
        yield drawn.update


def move_into_place(folder: Path, target: Path) -> None:
    """Give the folder its name, replacing what has it, and remove the tools of the build.

    In this order, so that a build that is killed here goes on, and no other one can begin in a
    folder that has lost its lock.
    """
    clear_partial(folder)
    replace_folder(folder, target)
    for name in (PLAN, HASH, FITTED, LOCK, "lock"):  # the last one of a build that 0.1.0 began
        (target / name).unlink(missing_ok=True)
    remove_replaced(target)


def put_back_replaced(target: Path) -> None:
    """Give an index its name back if a crash came between its going and the next one's coming.

    Nothing is done while another process is at work there.
    """
    if target.exists() or not former_folder(target).is_dir():
        return
    with suppress(FileExistsError), alone_in(_building(target)):
        put_back_former(target.parent, glob.escape(target.name))


def _building(target: Path) -> Path:
    return target.with_name(f".{target.name}.building")


def remove_replaced(target: Path) -> None:
    """Remove the indexes that this one has replaced; a build that was killed leaves its behind."""
    remove_former(target)
    for old in target.parent.glob(f".{glob.escape(target.name)}.old.*"):  # of a killed 0.1.0
        if old.suffix[1:].isdigit():
            shutil.rmtree(old, ignore_errors=True)
