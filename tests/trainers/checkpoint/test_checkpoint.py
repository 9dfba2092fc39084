"""A checkpoint is whole or not there; its names mean what the help says."""

from __future__ import annotations

import csv
import errno
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed.checkpoint as dcp

from research_rl.trainers.checkpoint.callback import RunCheckpoint
from research_rl.trainers.checkpoint.files import (
    META,
    AtomicCheckpointIO,
    CheckpointError,
    find_checkpoint,
)
from research_rl.trainers.checkpoint.metrics_file import KeepMetrics, RunLogger


def weights(size: int = 1000) -> dict[str, Any]:
    return {"weights": torch.arange(size, dtype=torch.float32)}


def test_round_trip_and_nothing_left_beside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(weights(), path)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["weights"], weights()["weights"])
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("stage", ["write", "sync", "rename"])
def test_full_disk_keeps_the_last_good_one(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(weights(10), path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {
        "write": "torch.serialization._save",
        "sync": "os.fsync",
        "rename": "pathlib.Path.replace",
    }
    monkeypatch.setattr(target[stage], full)
    with pytest.raises(CheckpointError) as error:
        AtomicCheckpointIO().save_checkpoint(weights(), path)
    monkeypatch.undo()
    message = str(error.value)
    assert "No space left on device" in message
    assert "kept whole: last.ckpt" in message
    assert message.endswith("make room, then resume with --ckpt_path last")
    assert len(AtomicCheckpointIO().load_checkpoint(path)["weights"]) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = [".last.ckpt.partial", ".last.ckpt.77.partial"]
    kept = [".best.ckpt.77.partial", "best.ckpt"]
    for name in (*left, *kept):
        (tmp_path / name).write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(weights(), tmp_path / "last.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == [*kept, "last.ckpt"]


def test_a_folder_that_a_crash_left_without_its_name_is_found(tmp_path: Path) -> None:
    former = tmp_path / ".last.ckpt.former"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it saves in a single process
        dcp.save({"w": torch.zeros(1)}, checkpoint_id=former, no_dist=True)
    torch.save({}, former / META)
    assert find_checkpoint("last", tmp_path) == tmp_path / "last.ckpt"
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_real_write_that_fails(tmp_path: Path) -> None:
    # A process that may write 100 kB a file: torch hides the OSError behind a RuntimeError.
    code = (
        "import sys, torch; from research_rl.trainers.checkpoint.callback import *;"
        "AtomicCheckpointIO().save_checkpoint({'w': torch.zeros(10**6)}, sys.argv[1])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "last.ckpt")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert run.returncode == 1
    last_line = run.stderr.strip().splitlines()[-1]
    assert "CheckpointError: cannot write the checkpoint" in last_line
    assert "File too large after" in last_line
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_the_disks_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle") as error:
        AtomicCheckpointIO().save_checkpoint({"w": lambda: None}, tmp_path / "last.ckpt")
    assert not isinstance(error.value, CheckpointError)


def test_last_is_the_newest_and_best_is_what_it_remembers(tmp_path: Path) -> None:
    best = tmp_path / "step=4.ckpt"
    torch.save({}, best)
    # the run may have been moved since: only the file's name counts
    state = {
        "callbacks": {"ModelCheckpoint{'monitor': 'val/f1'}": {"best_model_path": f"x/{best.name}"}}
    }
    for age, name in enumerate(["last.ckpt", "last-v2.ckpt", "last-v1.ckpt"]):
        torch.save(state, tmp_path / name)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert find_checkpoint("last", tmp_path) == tmp_path / "last-v2.ckpt"
    (tmp_path / "last-v2.ckpt").unlink()
    assert find_checkpoint("last", tmp_path) == tmp_path / "last-v1.ckpt"
    assert find_checkpoint("best", tmp_path) == best
    assert find_checkpoint(str(best), tmp_path) == best


def test_where_last_is_torn_the_one_that_learned_most_is_taken(tmp_path: Path) -> None:
    for steps, name in ((8, "a.ckpt"), (20, "b.ckpt"), (12, "c.ckpt")):
        torch.save({"global_step": steps}, tmp_path / name)
        os.utime(tmp_path / name, (1000 - steps, 1000 - steps))  # as a copy may leave them
    (tmp_path / "last.ckpt").write_bytes(b"PK torn")
    assert find_checkpoint("last", tmp_path) == tmp_path / "b.ckpt"
    torch.save({"global_step": 4}, tmp_path / "last.ckpt")
    assert find_checkpoint("last", tmp_path) == tmp_path / "last.ckpt"


def test_without_a_last_the_newest_whole_is_taken(tmp_path: Path) -> None:
    # best.ckpt is written before last.ckpt: a kill in between leaves the one alone
    state = {"callbacks": {"RunCheckpoint": {"best_model_path": "x/best.ckpt"}}, "global_step": 4}
    torch.save(state, tmp_path / "best.ckpt")
    (tmp_path / "torn.ckpt").write_bytes(b"PK torn")
    for name in ("last", "best"):
        assert find_checkpoint(name, tmp_path) == tmp_path / "best.ckpt"


@pytest.mark.parametrize("name", ["best", "elsewhere/x.ckpt"])
def test_a_missing_checkpoint_is_said(name: str, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "step=4.ckpt")
    with pytest.raises(FileNotFoundError, match=r"step=4\.ckpt"):
        find_checkpoint(name, tmp_path)


@pytest.mark.parametrize("name", ["last", "best", "elsewhere/x.ckpt"])
def test_a_folder_without_any_checkpoint_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        find_checkpoint(name, tmp_path)


def test_best_without_a_monitor_is_said(tmp_path: Path) -> None:
    torch.save({"callbacks": {}}, tmp_path / "last.ckpt")
    with pytest.raises(FileNotFoundError, match="give ModelCheckpoint a monitor"):
        find_checkpoint("best", tmp_path)


class Line(pl.LightningModule):
    """One weight, a train metric a batch and a validation metric after two."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("train/x", float(self.trainer.global_step))
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/x", -float(self.trainer.global_step))  # worse and worse

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path, steps: int, resume: bool = False, model: Line | None = None, **settings: Any
) -> list[tuple[str, str, str]]:
    """Train to ``steps`` and return the metrics file's (step, train/x, val/x)."""
    often = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer = pl.Trainer(
        **(settings or often),
        accelerator="cpu",
        max_steps=steps,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        logger=RunLogger(folder, name="", version="", flush_logs_every_n_steps=1),
        callbacks=[
            KeepMetrics(),
            RunCheckpoint(monitor="val/x", dirpath=str(folder / "checkpoints")),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = torch.utils.data.DataLoader([0] * 100)
    last = str(folder / "checkpoints" / "last.ckpt") if resume else None
    trainer.fit(model or Line(), loader, loader, ckpt_path=last)
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [(row["step"], row.get("train/x", ""), row.get("val/x", "")) for row in rows]


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_keeps_its_metrics(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 6)
    first = fit(tmp_path / "halves", 4)
    assert first == whole[: len(first)]
    assert fit(tmp_path / "halves", 6, resume=True) == whole
    # A fresh run in the same folder starts a new file.
    assert fit(tmp_path / "halves", 4) == first


class Fails(Line):
    """Fails before its first batch, or in it."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        setattr(self, hook, self.fail)

    def fail(self, *args: Any) -> None:
        raise OSError("no such thing")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hook", ["configure_model", "on_fit_start", "training_step"])
def test_a_resume_that_fails_keeps_the_metrics(hook: str, tmp_path: Path) -> None:
    fit(tmp_path, 4)
    before = (tmp_path / "metrics.csv").read_text()
    with pytest.raises(OSError, match="no such thing"):
        fit(tmp_path, 6, resume=True, model=Fails(hook))
    assert (tmp_path / "metrics.csv").read_text() == before


@pytest.mark.filterwarnings("ignore")
def test_the_best_is_kept_where_lightning_validates_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    fit(tmp_path, 200, max_epochs=2)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    best = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 100


@pytest.mark.filterwarnings("ignore")
def test_last_is_renewed_though_the_metric_gets_worse(tmp_path: Path) -> None:
    fit(tmp_path, 5)  # validations after 2 and 4
    folder = tmp_path / "checkpoints"
    assert {p.name for p in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    steps = {
        name: torch.load(find_checkpoint(name, folder), weights_only=True)["global_step"]
        for name in ("best", "last")
    }
    assert steps == {"best": 2, "last": 5}


class Level(Line):
    """As good at every validation."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/x", 1.0)


@pytest.mark.filterwarnings("ignore")
def test_of_equal_policies_the_newest_is_best(tmp_path: Path) -> None:
    fit(tmp_path, 6, model=Level())
    best = torch.load(tmp_path / "checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 6
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_a_checkpoint_cannot_name_a_file_elsewhere_to_be_removed(tmp_path: Path) -> None:
    folder, victim = tmp_path / "checkpoints", tmp_path / "thesis"
    folder.mkdir()
    victim.mkdir()
    callback = RunCheckpoint(dirpath=folder)
    state = callback.state_dict()
    mine = str(folder / "best.ckpt")
    around = str(folder / ".." / "thesis")
    state["best_k_models"] = {around: torch.tensor(-1.0), mine: torch.tensor(1.0)}
    state |= {"dirpath": str(folder), "best_model_score": torch.tensor(1.0)}
    callback.load_state_dict(state)
    assert list(callback.best_k_models) == [mine]
