"""Checkpoints outside the folder of a run are no more overwritten by accident than those in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from doubles.built_run import Built
from doubles.holder import HOLD
from doubles.tiny_run import write_config

from research_rl.trainers.cli import fit
from research_rl.trainers.settings import UsageError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def begin(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that does what a fit does before it trains; its checkpoints are in ``shared``."""
    monkeypatch.chdir(tmp_path)

    def do(*options: str, folder: str = "shared") -> None:
        words = ["research", "fit", "-c", str(tiny), "--trainer.callbacks.dirpath", folder]
        monkeypatch.setattr(sys, "argv", [*words, *options])
        fit.run(cli=Built)

    return do


def hold(folder: Path) -> subprocess.Popen[bytes]:
    other = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    return other


@pytest.mark.parametrize("folder", ["shared", "runs/tiny/saved"])
def test_checkpoints_of_another_run_are_kept(begin: Any, folder: str, tmp_path: Path) -> None:
    begin(folder=folder)  # nothing is there yet
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "best.ckpt").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"best\.ckpt.*--overwrite.*another dirpath"):
        begin(folder=folder)
    begin("--overwrite", folder=folder)


def test_a_run_that_names_its_own_checkpoint_goes_on_in_all_its_folders(
    begin: Any, tmp_path: Path
) -> None:
    own = tmp_path / "runs" / "tiny"
    for folder in ("saved", "checkpoints"):
        (own / folder).mkdir(parents=True, exist_ok=True)
        (own / folder / "last.ckpt").write_bytes(b"x")
    begin("--ckpt_path", str(own / "checkpoints" / "last.ckpt"), folder="runs/tiny/saved")


def test_going_on_with_what_may_be_another_runs_is_said(
    begin: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "last.ckpt").write_bytes(b"x")
    begin("--ckpt_path", "last")
    assert "holds no run, but" in caplog.text
    caplog.clear()
    root = tmp_path / "runs/tiny"
    (root / "metrics.csv").write_text("step,train/reward\n0,0.5\n", encoding="utf-8")
    begin("--ckpt_path", "last")
    assert "holds no run, but" not in caplog.text


def test_a_folder_of_checkpoints_is_locked(begin: Any, tmp_path: Path) -> None:
    for folder, held in (("shared", "shared"), ("other/checkpoints", "other")):
        other = hold(tmp_path / held)
        try:
            with pytest.raises(FileExistsError, match=r"held by another run.*another dirpath"):
                begin(folder=folder)
        finally:
            other.kill()
            other.wait()
        begin(folder=folder)
