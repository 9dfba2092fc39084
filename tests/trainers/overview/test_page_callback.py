"""The callback that writes a run's page: from the first moment to the last, whatever happens."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from doubles.run_folders import write_config
from pytorch_lightning.cli import SaveConfigCallback
from torch.utils.data import DataLoader

from research_rl.trainers.checkpoint import RunLogger
from research_rl.trainers.overview import callback
from research_rl.trainers.overview.callback import RunPage


class Learns(pl.LightningModule):
    """Logs a reward; fails in the iteration that it is told, before any other work."""

    def __init__(self, fails_in: int = -1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.fails_in, self.pages = fails_in, list[str]()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        page = Path(self.trainer.default_root_dir) / "index.html"
        self.pages.append(page.read_text("utf-8"))
        if batch_idx == self.fails_in:
            raise RuntimeError("the power is gone")
        self.log("train/reward", 0.5)
        loss: torch.Tensor = self.layer(torch.ones(1, 1)).sum()
        return loss


class Refuses(SaveConfigCallback):
    """Has a parser that ends the process, as that of a command line does."""

    def __init__(self) -> None:
        self.parser = self  # type: ignore[assignment]

    def parse_args(self, *_: Any, **__: Any) -> Any:
        raise SystemExit(2)

    def setup(self, *_: Any, **__: Any) -> None:
        """Save nothing."""


def fit(folder: Path, module: Learns, *page: pl.Callback, **settings: Any) -> None:
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=1,
        logger=RunLogger(folder, name="", version=""),
        callbacks=list(page),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, DataLoader(range(3)))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_there_is_a_page_from_the_beginning_and_of_the_end(tmp_path: Path) -> None:
    module = Learns()
    fit(tmp_path, module, RunPage(every_n_seconds=0))
    assert "running, 0 of 3 iterations" in module.pages[0], "whoever trains it holds no lock here"
    assert "running, 1 of 3 iterations<" in module.pages[2], "Lightning logs behind the callbacks"
    assert "finished, 3 of 3 iterations" in (tmp_path / "index.html").read_text("utf-8")
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert costs["host_bytes"] > 1e7
    assert costs["command"] == "fit"
    assert costs["iterations"] == 3, "what max_epochs comes to"


@pytest.mark.filterwarnings("ignore")
def test_a_page_is_not_written_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = list[Path]()
    monkeypatch.setattr(callback, "write_run_page", lambda path, *_, **__: written.append(path))
    monkeypatch.setattr(
        Learns, "training_step", lambda self, *_: self.layer(torch.ones(1, 1)).sum()
    )
    fit(tmp_path, Learns(), RunPage(every_n_seconds=1000))
    assert len(written) == 2, "at the beginning and at the end"


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_fails_has_its_page(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the power is gone"):
        fit(tmp_path, Learns(fails_in=2), RunPage(every_n_seconds=1000))
    assert "stopped, 2 of 3 iterations" in (tmp_path / "index.html").read_text("utf-8")


@pytest.mark.filterwarnings("ignore")
def test_a_page_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> Path:
        raise OSError("no space left on device")

    monkeypatch.setattr(callback, "write_run_page", full)
    monkeypatch.setattr(
        Learns, "training_step", lambda self, *_: self.layer(torch.ones(1, 1)).sum()
    )
    caplog.set_level(logging.WARNING)
    fit(tmp_path, Learns(), RunPage())
    assert "could not write the page of the run: OSError: no space left on device" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_a_parser_that_refuses_ends_no_run(tmp_path: Path) -> None:
    write_config(tmp_path)
    fit(tmp_path, Learns(), Refuses(), RunPage())
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "that <code>quickstart</code> names" in page, "and it says what was not compared"


@pytest.mark.filterwarnings("ignore")
def test_a_dry_run_leaves_no_page(tmp_path: Path) -> None:
    module = Learns()
    module.training_step = lambda *_: module.layer(torch.ones(1, 1)).sum()  # type: ignore[method-assign]
    fit(tmp_path, module, RunPage(), fast_dev_run=1)
    assert not (tmp_path / "index.html").exists()


def test_memory_is_that_of_the_highest_process(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"host_bytes": 1e18, "other": 3}))
    assert callback._costs(file)["host_bytes"] == 1e18
    for odd in ("[1]", "no json", '{"host_bytes": "many"}'):
        file.write_text(odd)
        assert callback._costs(file)["host_bytes"] > 1e7


def test_a_negative_pace_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        RunPage(every_n_seconds=-1)
