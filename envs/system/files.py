"""Files and folders that are whole or not there.

What is written lies beside its place, as ``.NAME.PID.partial``, and is renamed into it when it is
complete. So whoever looks, also after ``kill -9``, finds the old one or the new one, and what a
killed process left is known by its name.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

_READ_ANEW = 1 << 20
"""Bytes; a file of fewer is read to know whether it changed."""
Content = str | Iterable[str | bytes] | Callable[[BinaryIO], object]
_DIGESTS: dict[Path, tuple[str, str]] = {}
"""Files that were read: the mark and the SHA-256 of each."""


def lines_of(text: str) -> list[str]:
    """Return the lines of a text file that a program wrote, such as JSONL: they end at ``\\n``.

    ``str.splitlines`` also ends them at U+2028, U+0085 and others, which JSON leaves in strings.
    """
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines


def write_whole(path: Path, content: Content) -> Path:
    """Write a file beside its place, wait until the disk has it, rename it and return the path.

    Args:
        path: its folder is made.
        content: text, in which what UTF-8 cannot say is written as its number; parts of text or
            bytes; or a function that writes into the binary file it is given.

    Raises:
        OSError: the disk does not take it; a file that was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(path) as partial:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.writelines(map(_encoded, [content] if isinstance(content, str) else content))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    return path


def _encoded(part: str | bytes) -> bytes:
    return part.encode("utf-8", "backslashreplace") if isinstance(part, str) else part


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yield where a file is written before it is renamed to ``path``.

    What still lies there at the end of the block, after an error for instance, is removed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
    finally:
        _remove(partial)


@contextmanager
def folder_in_place(target: Path) -> Iterator[Path]:
    """Yield a folder to fill, which takes the place of ``target`` at the end of the block.

    It need not be made. After an error it is removed, and what was there is as it was. Its files
    are not synced, for weights may be many gigabytes: after a power failure look at them.
    """
    put_back_former(target.parent, glob.escape(target.name))
    partial = partial_folder(target)
    _remove(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        replace_folder(partial, target)
    finally:
        _remove(partial)


def partial_folder(target: Path) -> Path:
    """Return where a folder is filled before it takes its place; the same for all ranks of a run.

    One that a killed process left is replaced by the next one.
    """
    return target.with_name(f".{target.name}.partial")


def replace_folder(made: Path, target: Path) -> None:
    """Let a finished folder take the place of ``target``, which goes last of all.

    A folder cannot be renamed over another: a crash between two renames leaves the former one under
    a hidden name, from which ``put_back_former`` fetches it.
    """
    if target.is_dir():
        remove_former(target)
        target.replace(former_folder(target))
    elif target.exists():
        target.unlink()
    made.replace(target)
    remove_former(target)


def remove_former(target: Path) -> None:
    """Remove what ``target`` has replaced, where a process that was killed could not."""
    if target.exists():
        _remove(former_folder(target))


def put_back_former(folder: Path, pattern: str = "*") -> None:
    """Give former folders their names back where a crash kept the new ones from taking them."""
    for former in folder.glob(f".{pattern}.former"):
        target = former.with_name(former.name.removeprefix(".").removesuffix(".former"))
        if not target.exists():
            with suppress(FileNotFoundError):  # another rank was faster
                former.replace(target)


def former_folder(target: Path) -> Path:
    """Return where a folder lies that ``target`` is replacing."""
    return target.with_name(f".{target.name}.former")


def clear_partial(folder: Path, name: str | None = None) -> None:
    """Remove what processes that were killed while they wrote have left in a folder.

    Only for a folder in which nobody else writes at the moment.

    Args:
        folder: need not be there.
        name: of the file or folder that was to be written; None is any.
    """
    what = "*" if name is None else glob.escape(name)
    for path in folder.glob(f".{what}.*partial"):  # those without a PID, of 0.1.0, too
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or a folder as far as it can be; the reason for doing so is told elsewhere."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_stamp(path: Path) -> list[Any]:
    """Return name, size and SHA-256 of a file, or of the files of a folder such as shards.

    A large file that nobody has written since (``is_unwritten``) is not read again by this process.
    """
    if path.is_dir():
        inside = [digest_stamp(file) for file in sorted(path.rglob("*")) if file.is_file()]
        return [path.name, *inside]
    place, mark = path.resolve(), file_mark(path)
    known = _DIGESTS.get(place)
    if known is None or not is_unwritten(place, known[0]):
        _DIGESTS[place] = known = mark, sha256_of(path)
    return [path.name, path.stat().st_size, known[1]]


def file_mark(path: str | Path) -> str:
    """Return what the file system tells of a file's state: number, size and both times of change.

    ``os.utime``, ``cp -p`` and ``rsync -t`` set the first time, and no program sets the second:
    every write and every copy gives it a new one.
    """
    found = Path(path).stat()
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def is_unwritten(path: str | Path, mark: str | None) -> bool:
    """Return whether a file surely has the bytes that it had when ``file_mark`` gave a mark.

    False says that it may have others: ask ``sha256_of``. It is always False for files below 1 MB,
    which are read in a millisecond, in which a write might go unseen; and on Windows, where the
    second time is that of the making.
    """
    if os.name != "posix" or Path(path).stat().st_size < _READ_ANEW:
        return False
    return mark == file_mark(path)


class LineError(ValueError):
    """A file cannot be read; names it, the line and what is wrong there.

    Args:
        file: the file or data set.
        line: counted from 1 (for parquet and the Hub: the row); None if the whole is at fault.
        reason: what is wrong.
    """

    def __init__(self, file: str | Path, line: int | None, reason: str) -> None:
        super().__init__(f"{file}:{line}: {reason}" if line else f"{file}: {reason}")
        self.file, self.line, self.reason = str(file), line, reason

    def __reduce__(self) -> tuple[type[LineError], tuple[str, int | None, str]]:
        return type(self), (self.file, self.line, self.reason)
