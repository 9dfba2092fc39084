"""The metrics file loses no row: not on a full disk, not by a resume, not by what a crash left."""

from __future__ import annotations

import csv
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.loggers import CSVLogger

from research_rl.trainers.checkpoint.metrics_file import KeepMetrics, MetricsError, RunLogger

NAMES = ("train/loss", "train/reward", "val/f1", "a,b")


def logger(folder: Path, every: int = 1, **settings: Any) -> RunLogger:
    return RunLogger(folder, name="", version="", flush_logs_every_n_steps=every, **settings)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full: no file of this process may grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@settings(max_examples=25, deadline=None)
@given(
    logged=st.lists(
        st.dictionaries(st.sampled_from(NAMES), st.floats(width=32), min_size=1), min_size=1
    ),
    every=st.integers(1, 4),
    prefix=st.sampled_from(["", "run"]),
)
def test_the_file_is_the_one_that_lightning_writes(
    logged: list[dict[str, float]],
    every: int,
    prefix: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folders = [tmp_path_factory.mktemp(name) for name in ("ours", "theirs")]
    theirs = CSVLogger(folders[1], "", "", prefix, flush_logs_every_n_steps=every)
    for each in (logger(folders[0], every, prefix=prefix), theirs):
        for step, metrics in enumerate(logged):
            each.log_metrics({k: torch.tensor(v) for k, v in metrics.items()}, step)
        each.finalize("success")
    ours, expected = (folder / "metrics.csv" for folder in folders)
    assert ours.read_bytes() == expected.read_bytes()


def test_hyperparameters_lie_beside_the_metrics(tmp_path: Path) -> None:
    logger(tmp_path).log_hyperparams({"lr": 0.5})
    assert (tmp_path / "hparams.yaml").read_text() == "lr: 0.5\n"


def test_another_process_appends(tmp_path: Path) -> None:
    logger(tmp_path).log_metrics({"x": 1.0}, 0)
    logger(tmp_path).log_metrics({"x": 2.0}, 1)
    logger(tmp_path).log_metrics({"y": 3.0}, 2)
    found = [(row["step"], row["x"], row["y"]) for row in rows(tmp_path / "metrics.csv")]
    assert found == [("0", "1.0", ""), ("1", "2.0", ""), ("2", "", "3.0")]


@pytest.mark.parametrize("metric", ["x", "new"])
def test_a_full_disk_is_said_and_costs_no_row(metric: str, tmp_path: Path) -> None:
    run, path = logger(tmp_path), tmp_path / "metrics.csv"
    run.log_metrics({"x": 1.0}, 0)
    before = path.read_bytes()
    with files_of_at_most(len(before) + 2):
        with pytest.raises(MetricsError, match=r"cannot write .*metrics\.csv: .*; make room, then"):
            run.log_metrics({metric: 2.0}, 1)
        assert path.read_bytes() == before  # no half row
        with pytest.raises(MetricsError):
            run.finalize("success")
        run.finalize("failed")  # must not hide what it failed of
    run.log_metrics({metric: 3.0}, 2)
    assert [row["step"] for row in rows(path)] == ["0", "1", "2"]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"torn", b"step,x\r\n0,1.0\r\n1", b"step,x\r\n0,1.0,2.0\r\n"]
)
def test_a_file_that_cannot_be_read_is_said_and_left(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(MetricsError, match=r"cannot read .*metrics\.csv: .*; move it away, then"):
        logger(tmp_path).log_metrics({"x": 1.0}, 1)
    assert path.read_bytes() == content


def test_a_file_that_vanishes_comes_back_with_every_row(tmp_path: Path) -> None:
    run, path = logger(tmp_path), tmp_path / "metrics.csv"
    run.log_metrics({"x": 1.0}, 0)
    path.unlink()
    run.log_metrics({"x": 2.0}, 1)
    assert [row["step"] for row in rows(path)] == ["0", "1"]


class Counts(pl.LightningModule):
    """One weight; logs each batch, and each validation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.iteration = 7

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("train/x", float(self.trainer.global_step))
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/x", float(self.trainer.global_step))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, steps: int, *callbacks: pl.Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        logger=logger(folder),
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def loader() -> Any:
    return torch.utils.data.DataLoader([0] * 100)


@pytest.fixture
def stopped(tmp_path: Path) -> tuple[Path, Path]:
    """A run of four iterations, and a checkpoint that it wrote behind its second."""

    class SaveOnce(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "two.ckpt")

    trainer(tmp_path, 4, KeepMetrics(), SaveOnce()).fit(Counts(), loader(), loader())
    assert [row["step"] for row in rows(tmp_path / "metrics.csv")] == list("011233")
    return tmp_path, tmp_path / "two.ckpt"


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_with_rows_gives_the_file_those(stopped: tuple[Path, Path]) -> None:
    folder, saved = stopped
    whole = (folder / "metrics.csv").read_bytes()
    for left in (whole, whole[:20], b"torn", None):
        (folder / "metrics.csv").unlink(missing_ok=True)
        if left is not None:
            (folder / "metrics.csv").write_bytes(left)
        again = trainer(folder, 4, KeepMetrics())
        again.fit(Counts(), loader(), loader(), ckpt_path=saved)
        assert (folder / "metrics.csv").read_bytes() == whole


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_without_rows_cuts_the_file(stopped: tuple[Path, Path]) -> None:
    folder, saved = stopped
    whole = (folder / "metrics.csv").read_bytes()
    state = torch.load(saved, weights_only=True)
    del state["callbacks"]["KeepMetrics"]
    torch.save(state, saved)
    trainer(folder, 4, KeepMetrics()).fit(Counts(), loader(), loader(), ckpt_path=saved)
    assert (folder / "metrics.csv").read_bytes() == whole
    (folder / "metrics.csv").write_bytes(b"torn")
    with pytest.raises(MetricsError, match="cannot read"):
        trainer(folder, 4, KeepMetrics()).fit(Counts(), loader(), loader(), ckpt_path=saved)
    assert (folder / "metrics.csv").read_bytes() == b"torn"


@pytest.mark.filterwarnings("ignore")
def test_looking_begins_a_new_file_numbered_by_what_was_learned(stopped: tuple[Path, Path]) -> None:
    folder, _ = stopped
    trainer(folder, 4, KeepMetrics()).validate(Counts(), loader(), verbose=False)
    (row,) = rows(folder / "metrics.csv")
    assert row == {"epoch": "0", "step": "7", "val/x": "0.0"}


def test_no_file_is_deleted_with_a_warning(
    stopped: tuple[Path, Path], recwarn: pytest.WarningsRecorder
) -> None:
    folder, saved = stopped
    trainer(folder, 4, KeepMetrics()).fit(Counts(), loader(), loader(), ckpt_path=saved)
    assert not [w for w in recwarn if "will be deleted" in str(w.message)]
