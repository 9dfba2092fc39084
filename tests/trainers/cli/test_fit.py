"""The command fit before it runs: whose loggers, callbacks and options it takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from doubles.built_run import Built
from doubles.tiny_run import write_config
from pytorch_lightning.loggers import CSVLogger

from research_rl.trainers.checkpoint.metrics_file import RunLogger
from research_rl.trainers.cli import fit


class Mine(CSVLogger):
    """A user's own logger."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny"))


def built(
    tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str, **trainer: Any
) -> fit.ResearchCLI:
    """The command with these options and these settings of the trainer."""
    monkeypatch.chdir(folder)
    config = yaml.safe_load(tiny.read_text("utf-8"))
    config["trainer"] |= trainer
    Path("mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["research", "fit", "-c", "mine.yaml", *options])
    return fit.run(cli=Built)


def csv_logger(name: str, folder: str = "runs/tiny") -> dict[str, Any]:
    settings = {"save_dir": folder, "name": "", "version": "", "flush_logs_every_n_steps": 3}
    return {"class_path": name, "init_args": settings}


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "CSVLogger",
        "pytorch_lightning.loggers.CSVLogger",
        "pytorch_lightning.loggers.csv_logs.CSVLogger",
        "RunLogger",
    ],
)
def test_a_run_logger_stands_where_a_csv_logger_is_named(
    name: str,
    many: bool,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = csv_logger(name)
    cli = built(tiny, tmp_path, monkeypatch, logger=[one] if many else one)
    (logger,) = cli.trainer.loggers
    assert type(logger) is RunLogger
    assert logger.log_dir == "runs/tiny/"
    for step in range(3):
        assert not (tmp_path / "runs/tiny/metrics.csv").exists()
        logger.log_metrics({"x": 1.0}, step)
    assert (tmp_path / "runs/tiny/metrics.csv").is_file()
    assert "metrics.csv" not in caplog.text


def test_a_logger_that_would_lose_rows_is_said(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    cli = built(tiny, tmp_path, monkeypatch, logger=csv_logger("mine.Mine"))
    assert type(cli.trainer.logger) is Mine
    assert "Mine in runs/tiny/ begins a new metrics.csv" in caplog.text


def test_a_checkpoint_does_not_override_the_command_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "theirs.ckpt"
    torch.save({"hyper_parameters": {"seed": 99}}, saved)
    cli = built(tiny, tmp_path, monkeypatch, "--ckpt_path", str(saved))
    assert cli.config["fit"]["model"]["seed"] == 3
