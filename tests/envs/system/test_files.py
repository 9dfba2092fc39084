"""A file or a folder is whole or not there, however the process ends that writes it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from research_rl.envs.system.files import (
    clear_partial,
    file_mark,
    folder_in_place,
    is_unwritten,
    partial_file,
    partial_folder,
    put_back_former,
    remove_former,
    write_whole,
)


class Killed(BaseException):
    """Stands for the end of the process."""


STEPS = {"fsync": os, "rmtree": shutil, "replace": Path, "unlink": Path}


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """End the process before its n-th change of the disk: from there on it changes nothing."""
    done: list[str] = []

    def guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **kwargs: Any) -> Any:
            if len(done) >= step:
                raise Killed
            done.append(name)
            return function(*args, **kwargs)

        return act

    for name, owner in STEPS.items():
        monkeypatch.setattr(owner, name, guarded(name, getattr(owner, name)))
    return done


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_bytes_parts_and_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    assert write_whole(path, "é\udc80\r\n") == path
    assert path.read_bytes() == "é\\udc80\r\n".encode()
    assert write_whole(path, (part for part in ("a", b"\xff"))).read_bytes() == b"a\xff"
    assert write_whole(path, lambda file: file.write(b"written")).read_bytes() == b"written"
    assert names(path.parent) == ["a.txt"]


def test_a_new_file_has_the_mode_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    assert write_whole(tmp_path / "a", "x").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("stage", ["write", "sync", "rename"])
def test_a_full_disk_leaves_the_former_file_and_nothing_beside(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def parts() -> Iterator[str]:
        yield "half"
        full()

    write_whole(tmp_path / "a", "former")
    if stage != "write":
        owner, name = (os, "fsync") if stage == "sync" else (Path, "replace")
        monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", parts() if stage == "write" else "new")
    assert (tmp_path / "a").read_text() == "former"
    assert names(tmp_path) == ["a"]


def test_a_kill_at_any_step_leaves_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for step in range(20):
        path = write_whole(tmp_path / "a", "former")
        with monkeypatch.context() as patch:
            try:
                done = kill_at(step, patch)
                write_whole(path, "new")
                killed = False
            except Killed:
                killed = True
        seen.append(path.read_text())
        clear_partial(tmp_path)
        assert names(tmp_path) == ["a"]
        if not killed:
            assert set(done) == {"fsync", "replace", "unlink"}
            break
    assert set(seen) == {"former", "new"}
    assert seen == sorted(seen), "what is new stays"


def fill(target: Path, text: str) -> None:
    with folder_in_place(target) as folder:
        folder.mkdir()
        (folder / "a").write_text(text)
        (folder / "b").write_text(text)


def texts(target: Path) -> set[str]:
    return {(target / name).read_text() for name in ("a", "b")}


def test_a_folder_takes_the_place_of_another_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    fill(target, "first")
    assert texts(target) == {"first"}
    fill(target, "second")
    assert texts(target) == {"second"}
    shutil.rmtree(target)
    target.write_text("a file")
    fill(target, "third")
    assert texts(target) == {"third"}
    assert names(target.parent) == ["model"]


def test_a_folder_that_is_not_finished_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "model", "former")

    def half(folder: Path) -> None:
        folder.mkdir()
        (folder / "a").write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"), folder_in_place(tmp_path / "model") as folder:
        half(folder)
    assert texts(tmp_path / "model") == {"former"}
    assert names(tmp_path) == ["model"]


def test_a_kill_at_any_step_leaves_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    seen = []
    for step in range(20):
        fill(target, "former")
        (partial_folder(target) / "of").mkdir(parents=True)  # a process that was killed before
        with monkeypatch.context() as patch:
            try:
                kill_at(step, patch)
                fill(target, "new")
                killed = False
            except Killed:
                killed = True
        put_back_former(tmp_path)
        assert len(texts(target)) == 1
        seen += texts(target)
        fill(target, "later")
        assert texts(target) == {"later"}
        assert names(tmp_path) == ["model"]
        if not killed:
            break
    assert set(seen) == {"former", "new"}


def test_only_a_former_folder_whose_name_is_free_is_put_back(tmp_path: Path) -> None:
    for name in (".a.ckpt.former", ".b.ckpt.former", "b.ckpt", ".c.former"):
        (tmp_path / name).mkdir()
    put_back_former(tmp_path, "*.ckpt")
    assert names(tmp_path) == [".b.ckpt.former", ".c.former", "a.ckpt", "b.ckpt"]
    remove_former(tmp_path / "b.ckpt")
    remove_former(tmp_path / "c")  # the only copy
    assert names(tmp_path) == [".c.former", "a.ckpt", "b.ckpt"]


def test_what_killed_processes_left_is_known_by_its_name(tmp_path: Path) -> None:
    left = [".a.csv.partial", ".a.csv.12.partial", ".b.csv.7.partial"]
    kept = [".a.csv", "a.csv", "a.csv.partial", "partial"]
    for name in (*left, *kept):
        (tmp_path / name).touch()
    (tmp_path / ".model.partial" / "deep").mkdir(parents=True)
    clear_partial(tmp_path, "a.csv")
    assert names(tmp_path) == sorted([".b.csv.7.partial", ".model.partial", *kept])
    clear_partial(tmp_path)
    assert names(tmp_path) == sorted(kept)
    clear_partial(tmp_path / "not there")


def test_what_is_not_renamed_is_removed(tmp_path: Path) -> None:
    with partial_file(tmp_path / "a") as partial:
        partial.write_text("never wanted")
        clear_partial(tmp_path, "b")
        assert partial.is_file()
    assert names(tmp_path) == []


def test_a_large_file_is_unwritten_until_it_is_written_or_copied(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(bytes(1 << 20))
    mark, stamp = file_mark(file), file.stat()
    assert is_unwritten(file, mark)
    assert not is_unwritten(file, None)
    file.rename(tmp_path / "renamed")
    copied = Path(shutil.copy2(tmp_path / "renamed", file))  # keeps the time of change
    assert copied.stat().st_mtime_ns == stamp.st_mtime_ns
    assert not is_unwritten(file, mark)
    small = tmp_path / "small"
    small.write_bytes(b"x")
    assert not is_unwritten(small, file_mark(small)), "it is read anew, which costs nothing"
