"""A folder is written by one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from doubles.holder import HOLD

from research_rl.envs.system.locks import alone_in


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
