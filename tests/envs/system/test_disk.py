"""What is said of a disk that is full, or will be."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from research_rl.envs.system import disk as disk_module
from research_rl.envs.system import is_full, told_if_full, warn_of_room

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_what_is_left_and_the_way_on(tmp_path: Path) -> None:
    said = r"out is not complete.*No space.*MB free.*rows are kept;.*"
    out = tmp_path / "out"
    with (
        pytest.raises(OSError, match=said) as told,
        told_if_full(out, "rows are kept", "say it again"),
    ):
        raise FULL
    assert str(told.value).endswith("make room, then say it again")
    with pytest.raises(OSError, match=said) as again, told_if_full(tmp_path, "nothing"):
        raise told.value
    assert again.value is told.value


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), told_if_full(tmp_path, "nothing"):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(KeyError), told_if_full(tmp_path, "nothing"):
        raise KeyError("x")


def test_a_full_disk_is_seen_behind_other_errors() -> None:
    behind = RuntimeError("it did not work")
    behind.__cause__ = FULL
    assert is_full(behind)
    assert is_full(ValueError("faiss: No space left on device"))
    assert is_full(OSError(errno.EFBIG, "x"))
    assert not is_full(OSError(errno.EACCES, "x"))


def test_little_room_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk_module, "free_at", lambda folder: 10**6)
    with caplog.at_level(logging.WARNING):
        warn_of_room(tmp_path / "not" / "there", "the index", 10**7)
        warn_of_room(tmp_path, "the index", 10**5)
    (record,) = caplog.records
    assert "the index takes about 10 MB, and 1 MB are free" in record.getMessage()
    monkeypatch.undo()
    assert disk_module.free_at(tmp_path / "not" / "there") > 0
