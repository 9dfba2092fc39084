"""A folder is written by one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from doubles.holder import HOLD

from research_rl.envs.system import locks
from research_rl.envs.system.locks import alone_in, is_held


def test_one_process_at_a_time_and_none_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            with (
                pytest.raises(FileExistsError, match=r"out is being written .* --out another"),
                alone_in(folder),
            ):
                pytest.fail("two at once")
        finally:
            other.kill()
    with alone_in(folder):
        pass
    with alone_in(folder):
        pass


def test_a_lock_that_another_machine_may_hold_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mounts = tmp_path / "run", tmp_path / "mountinfo"
    assert is_held(run) is False
    device = tmp_path.stat().st_dev
    place = f"{os.major(device)}:{os.minor(device)}"
    monkeypatch.setattr(locks, "_PROC_MOUNTS", mounts)
    for kind, known in (("ext4", False), ("nfs4", None), ("", None)):
        line = f"36 35 {place} / /mnt rw,noatime shared:1 - {kind} server:/home rw\n"
        mounts.write_text(line if kind else "")
        with alone_in(run):
            assert is_held(run) is True
        assert is_held(run) is known
    monkeypatch.setattr(locks, "_PROC_LOCKS", tmp_path / "none")
    with alone_in(run):
        assert is_held(run) is None


def test_a_subvolume_is_known_by_the_mount_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mounts, held = tmp_path / "a b" / "run", tmp_path / "mountinfo", tmp_path / "locks"
    with alone_in(run):
        pass
    point = str(tmp_path / "a b").replace(" ", "\\040")
    mounts.write_text(
        "20 1 0:998 / / rw - btrfs /dev/sda rw\n"
        f"21 20 0:999 / {point} rw,noatime shared:1 - btrfs /dev/sdb rw\n"
        "22 20 0:997 / /elsewhere rw - nfs4 server:/home rw\n"
        "broken\n"
    )
    held.write_text("")
    monkeypatch.setattr(locks, "_PROC_MOUNTS", mounts)
    monkeypatch.setattr(locks, "_PROC_LOCKS", held)
    assert is_held(run) is False
    number = (run / locks.LOCK).stat().st_ino
    held.write_text(f"1: FLOCK  ADVISORY  WRITE 12 00:3e7:{number} 0 EOF\n")
    assert is_held(run) is True
    held.write_text(f"1: FLOCK  ADVISORY  WRITE 12 00:3e6:{number} 0 EOF\n")
    assert is_held(run) is False, "a file of another file system"


def test_a_patient_process_waits(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        with pytest.raises(FileExistsError), alone_in(tmp_path, patience=0.1):
            pytest.fail("two at once")
        later = threading.Thread(target=_hold_for_a_while, args=(tmp_path,))
        later.start()
        later.join(0.1)
        assert later.is_alive()
    later.join(30)
    assert not later.is_alive()


def _hold_for_a_while(folder: Path) -> None:
    with alone_in(folder, patience=30):
        pass
