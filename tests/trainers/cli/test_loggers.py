"""Loggers are cosmetic: one that fails is left out, and the run goes on and says so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from doubles.tiny_run import write_config
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger

from research_rl.trainers.checkpoint.metrics_file import RunLogger
from research_rl.trainers.cli import dispatch
from research_rl.trainers.cli.loggers import may_fail


class Fails(DummyLogger):
    """A logger whose service is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self.asked += 1
        raise ConnectionError("the service\nis gone")


def test_a_logger_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    logger = Fails()
    may_fail([logger])
    for step in range(3):
        logger.log_metrics({"x": 1.0}, step)
    logger.finalize("success")
    assert logger.asked == 1
    assert caplog.text.count("is left out from here on") == 1
    assert "the service is gone" in caplog.text
    assert "metrics.csv" in caplog.text


def test_the_file_of_metrics_is_no_such_logger(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, name="", version="")
    may_fail([logger])
    assert "log_metrics" not in vars(logger)


@pytest.mark.parametrize("fits", [0, 2])
def test_a_full_disk_in_the_thread_of_tensorboard_ends_no_run(
    fits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    written = 0
    write, flush = RecordWriter.write, RecordWriter.flush

    def some(self: RecordWriter, data: bytes) -> None:
        nonlocal written
        written += 1
        if written > fits:
            raise OSError(28, "No space left on device")
        write(self, data)

    def full(self: RecordWriter) -> None:
        if written >= fits:
            raise OSError(28, "No space left on device")
        flush(self)

    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(write_config(tmp_path).read_text("utf-8"))
    board = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs/tiny/board"}}
    config["trainer"]["logger"] = [config["trainer"]["logger"], board]
    Path("mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["research", "fit", "-c", "mine.yaml"])
    monkeypatch.setattr(RecordWriter, "write", some)
    monkeypatch.setattr(RecordWriter, "flush", full)
    dispatch.main()
    state = torch.load("runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    assert f"{TensorBoardLogger.__name__} is left out from here on" in caplog.text
    assert "No space left on device" in caplog.text
