"""A run that was stopped goes on as if it had not been: signals, torn files, moved folders."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from doubles import training
from pytorch_lightning.utilities.exceptions import SIGTERMException

from research_rl.trainers.callbacks.rollout_log import RolloutLog
from research_rl.trainers.checkpoint.callback import RunCheckpoint
from research_rl.trainers.checkpoint.files import (
    AtomicCheckpointIO,
    CheckpointError,
    find_checkpoint,
    why_torn,
)
from research_rl.trainers.checkpoint.metrics_file import KeepMetrics
from research_rl.trainers.recorder.callback import FlightRecorder

pytestmark = pytest.mark.filterwarnings("ignore")


class Stop(pl.Callback):
    """Sends this process a signal at a hook, once an iteration is reached."""

    def __init__(self, hook: str, iteration: int, number: int = signal.SIGTERM) -> None:
        setattr(self, hook, self._send)
        self._iteration, self._number = iteration, number

    def _send(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        if module.iteration >= self._iteration:
            self._iteration = 10**9
            os.kill(os.getpid(), self._number)


def fit(
    folder: Path, policy: Path, *extra: pl.Callback, resume: bool = False, **every: float
) -> Any:
    """Train five iterations with a validation after every second one; return the module."""
    saver = RunCheckpoint(dirpath=str(folder / "checkpoints"), **every)  # type: ignore[arg-type]
    module = training.module(policy)
    trainer = training.trainer(
        folder,
        5,
        val_check_interval=2,
        enable_checkpointing=True,
        callbacks=[KeepMetrics(), *extra, RolloutLog(every_n_steps=1), FlightRecorder(), saver],
    )
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    last = str(find_checkpoint("last", folder / "checkpoints")) if resume else None
    trainer.fit(module, training.Data(), ckpt_path=last)
    return module


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in r.items() if "time/" not in k} for r in csv.DictReader(file)]


def same(folder: Path, other: Path) -> None:
    """Check that two runs left the same metrics, records and checkpoints."""
    assert rows(folder) == rows(other)
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (
            torch.load(f / "checkpoints" / name, weights_only=True)["state_dict"]
            for f in (folder, other)
        )
        assert all(torch.equal(a[key], b[key]) for key in b)
    texts = [(f / "rollouts/rollouts.jsonl").read_text("utf-8") for f in (folder, other)]
    assert texts[0] == texts[1]
    records = sorted(p.name for p in (other / "records").iterdir())
    assert sorted(p.name for p in (folder / "records").iterdir()) == records
    for name in records:
        assert (folder / "records" / name).read_bytes() == (other / "records" / name).read_bytes()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def whole(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, policy)
    return folder


@pytest.mark.parametrize(
    ("hook", "iteration", "kept", "number"),
    [
        ("on_train_batch_start", 2, 3, signal.SIGTERM),  # in an iteration: it is finished first
        ("on_train_batch_start", 2, 3, signal.SIGHUP),
        # in one that a validation follows: it is made later
        ("on_train_batch_start", 1, 2, signal.SIGTERM),
        # in the last one of a pass over the questions, which a validation follows
        ("on_train_batch_start", 3, 4, signal.SIGTERM),
        ("on_validation_batch_start", 4, 4, signal.SIGTERM),
        ("on_validation_batch_start", 2, 2, signal.SIGTERM),  # in a validation: it is made anew
    ],
)
def test_sigterm_ends_between_iterations_and_loses_nothing(
    hook: str, iteration: int, kept: int, number: int, policy: Path, whole: Path, tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SIGTERMException) as stop:
        fit(tmp_path, policy, Stop(hook, iteration, number))
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) == before
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert last["iteration"] == kept
    fit(tmp_path, policy, resume=True)
    same(tmp_path, whole)


@pytest.mark.parametrize("every", [{"every_n_iterations": 1}, {"every_minutes": 1e-9}])
def test_last_is_renewed_between_validations(
    every: dict[str, float], policy: Path, whole: Path, tmp_path: Path
) -> None:
    class Crash(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
            if module.iteration == 3:
                raise OSError("the machine went away")

    with pytest.raises(OSError, match="went away"):
        fit(tmp_path, policy, Crash(), **every)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["iteration"] == 3
    (tmp_path / "metrics.csv").write_text("torn")
    fit(tmp_path, policy, resume=True)
    same(tmp_path, whole)


def test_how_often_last_is_renewed_must_be_positive() -> None:
    with pytest.raises(ValueError, match="every_n_iterations"):
        RunCheckpoint(every_n_iterations=0)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="every_minutes"):
            RunCheckpoint(every_minutes=wrong)


def test_ctrl_c_says_how_to_go_on(
    policy: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" ignores it
    try:
        with pytest.raises(SystemExit):
            fit(tmp_path, policy, Stop("on_train_batch_start", 3, signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert "--ckpt_path last" in caplog.text
    fit(tmp_path, policy, resume=True)
    same(tmp_path, whole)


def test_a_torn_checkpoint_is_skipped(
    policy: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints"
    last, good = folder / "last.ckpt", folder / "best.ckpt"
    data = last.read_bytes()
    for torn in (data[: len(data) // 2], b"", data[:5000] + b"\xff" * 64 + data[5064:]):
        last.write_bytes(torn)
        assert why_torn(last) is not None
        assert find_checkpoint("last", folder) == good
        assert "last.ckpt, which is torn" in caplog.text
        with pytest.raises(CheckpointError, match="not a whole checkpoint"):
            find_checkpoint(str(last), folder)
    fit(tmp_path, policy, resume=True)
    same(tmp_path, whole)
    good.write_bytes(b"")
    last.write_bytes(b"")
    with pytest.raises(CheckpointError, match="every checkpoint"):
        find_checkpoint("last", folder)


def test_a_moved_run_keeps_its_best(policy: Path, whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(whole, moved)
    saver = RunCheckpoint(dirpath=str(moved / "checkpoints"))
    state = torch.load(whole / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
    mine = next(v for k, v in state.items() if k.startswith("RunCheckpoint"))
    saver.load_state_dict(mine)
    assert saver.best_model_path == str(moved / "checkpoints/best.ckpt")
    assert saver.best_model_score == mine["best_model_score"]
    (moved / "checkpoints/best.ckpt").unlink()
    other = RunCheckpoint(dirpath=str(moved / "checkpoints"))
    other.load_state_dict(mine)
    assert other.best_model_score is None  # nothing here to compare with


def test_a_run_begun_anew_drops_the_old_checkpoints(
    policy: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)

    class Crash(pl.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise OSError("the machine went away")

    with pytest.raises(OSError, match="went away"):
        fit(tmp_path, policy, Crash())
    # else `last` would go on with the run before
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        find_checkpoint("last", tmp_path / "checkpoints")
