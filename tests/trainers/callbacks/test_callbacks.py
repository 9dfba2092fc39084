"""What a run leaves behind, driven by a real trainer and a module that only pretends to learn."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from doubles.sample_rollouts import rollouts
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from research_rl.agents.types import Rollout
from research_rl.trainers import progress
from research_rl.trainers.callbacks import base as callbacks
from research_rl.trainers.callbacks import curve
from research_rl.trainers.callbacks.base import cosmetic
from research_rl.trainers.callbacks.curve import LearningCurve
from research_rl.trainers.callbacks.export_policy import ExportPolicy
from research_rl.trainers.callbacks.rollout_log import RolloutLog
from research_rl.trainers.progress import RunProgressBar, total_iterations, validation_line
from research_rl.trainers.viewer import folder as rollout_files
from research_rl.trainers.viewer.folder import RolloutFiles, first_questions


class Policy(nn.Linear):
    """Something with weights that can be saved and read."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def decode(self, ids: list[int]) -> str:
        return "".join(f" {i}" for i in ids)

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")

    def check_written(self, folder: Path) -> None:
        assert (folder / "config.json").is_file()


class Pretender(pl.LightningModule):
    """Logs and keeps what ReSearchModule does, with ``updates`` optimizer steps an iteration."""

    def __init__(self, updates: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.updates = updates
        self.policy = Policy()
        self.train_rollouts: list[Rollout] = []
        self.train_advantages: list[float] = []
        self.val_rollouts: list[Rollout] = []
        self.test_rollouts: list[Rollout] = []
        self.iteration = 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["iteration"] = self.iteration

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.iteration = checkpoint["iteration"]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.test_rollouts = rollouts()[:1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        for _ in range(self.updates):
            optimizer.zero_grad()
            self.manual_backward(self.policy(torch.ones(1, 1)).sum())
            optimizer.step()
        self.train_rollouts = rollouts()
        self.train_advantages = [r.reward.value - 0.5 for r in self.train_rollouts]
        self.iteration += 1
        self.log_dict({"train/reward": 0.5, "train/f1": 0.25, "train/searches": 1.5})

    def on_validation_epoch_start(self) -> None:
        self.val_rollouts = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_rollouts += rollouts()
        self.log_dict({"val/f1": 0.75, "val/f1_1hop": 1.0, "val/f1_2hop": 0.5}, batch_size=1)


def trainer(folder: Path, *more: pl.Callback, **settings: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "logger": CSVLogger(folder, name="", version=""),
        "val_check_interval": 2,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    has_bar = any(isinstance(c, RunProgressBar) for c in more)
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(more),
        enable_progress_bar=has_bar,
        enable_model_summary=False,
        **(defaults | settings),
    )


def fit(trainer: pl.Trainer, module: pl.LightningModule, batches: int = 4, **more: Any) -> None:
    trainer.fit(module, DataLoader(range(batches)), DataLoader(range(1)), **more)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns Lightning's advice about data loaders off."""
    monkeypatch.setattr("warnings.showwarning", lambda *args, **kwargs: None)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What we told the reader of the console, filled while the test runs."""
    told: list[str] = []
    for module in (callbacks, progress):
        monkeypatch.setattr(module, "rank_zero_info", lambda text, *args: told.append(text % args))
    return told


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = (r for r in caplog.records if r.name.startswith("research_rl"))
    return [r.getMessage() for r in ours if r.levelno >= logging.WARNING]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_run_leaves_curve_rollouts_and_policy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    run = (LearningCurve(every_n_steps=1), RolloutLog(every_n_steps=2), ExportPolicy())
    fit(trainer(tmp_path, *run), Pretender())
    assert warned(caplog) == []
    assert {"learning_curve.png", "metrics.csv", "policy", "rollouts"} <= set(names(tmp_path))
    assert names(tmp_path / "policy") == ["config.json"]
    pages = ["train_000000", "train_000002", "val_000002", "val_000004"]
    expected = [f"{page}.{kind}" for page in pages for kind in ("html", "txt")]
    assert names(tmp_path / "rollouts") == sorted(
        [*expected, "index.html", "questions.html", "rollouts.jsonl"]
    )
    listed = re.findall(r'href="(?!data:)(.*?)"', (tmp_path / "rollouts/index.html").read_text())
    others = ["questions.html", "rollouts.jsonl"]
    assert sorted(listed) == [*others, *(f"{page}.html" for page in pages)]
    page = (tmp_path / "rollouts/train_000002.html").read_text()
    assert "step 2" in page
    assert '"21":" 21"' in page, "the policy decodes the tokens"
    assert "advantage +0.50" in (tmp_path / "rollouts/train_000002.txt").read_text()


def test_rows_hold_the_rollouts(tmp_path: Path) -> None:
    fit(trainer(tmp_path, RolloutLog(num_questions=1, num_val_questions=2)), Pretender(), 2)
    text = (tmp_path / "rollouts/rollouts.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(r["split"], r["step"]) for r in rows] == [("train", 0)] * 3 + [("val", 2)] * 5
    assert rows[0]["turns"] == rollouts()[0].turns
    assert [r["advantage"] for r in rows] == [0.5, -0.4, -0.5, None, None, None, None, None]


def test_steps_are_iterations_whatever_the_updates(tmp_path: Path) -> None:
    run = trainer(tmp_path, RolloutLog(every_n_steps=1))
    fit(run, Pretender(updates=3), batches=2)
    assert run.global_step == 6
    assert {"train_000000.html", "train_000001.html", "val_000002.html"} <= set(
        names(tmp_path / "rollouts")
    )


def test_a_new_run_replaces_and_a_resumed_run_continues(tmp_path: Path) -> None:
    folder = tmp_path / "rollouts"

    def run(batches: int, **settings: Any) -> list[str]:
        ckpt_path = settings.pop("ckpt_path", None)
        keep = ModelCheckpoint(
            tmp_path, save_last=True, every_n_train_steps=2, enable_version_counter=False
        )
        run = trainer(tmp_path, RolloutLog(every_n_steps=1), keep, **settings)
        fit(run, Pretender(), batches, ckpt_path=ckpt_path)
        return [name for name in names(folder) if re.fullmatch(r"train_\d+\.html", name)]

    assert run(4) == [f"train_00000{step}.html" for step in range(4)]
    assert run(2) == [f"train_00000{step}.html" for step in range(2)]
    RolloutFiles(folder).write("train", 7, rollouts())  # from behind the last checkpoint
    again = run(2, max_epochs=2, ckpt_path=str(tmp_path / "last.ckpt"))
    assert again == [f"train_00000{step}.html" for step in range(4)]
    rows = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    steps = [(r["split"], r["step"]) for r in rows[::5]]
    assert steps == [("train", 0), ("train", 1), ("val", 2), ("train", 2), ("train", 3), ("val", 4)]


def test_validate_keeps_what_fit_wrote(tmp_path: Path) -> None:
    run = trainer(tmp_path, RolloutLog(every_n_steps=1))
    module = Pretender()
    fit(run, module, 2)
    before = names(tmp_path / "rollouts")
    rows = (tmp_path / "rollouts/rollouts.jsonl").read_text()
    run.validate(module, DataLoader(range(1)), verbose=False)  # type: ignore[arg-type]
    assert names(tmp_path / "rollouts") == before
    assert (tmp_path / "rollouts/rollouts.jsonl").read_text() == rows
    for _ in range(2):
        run.test(module, DataLoader(range(1)), verbose=False)  # type: ignore[arg-type]
        after = set(names(tmp_path / "rollouts")) - set(before)
        assert after == {"test_000002.html", "test_000002.txt"}
        more = (tmp_path / "rollouts/rollouts.jsonl").read_text().removeprefix(rows).splitlines()
        assert [json.loads(row)["split"] for row in more] == ["test"]


def test_a_loaded_policy_is_numbered_by_what_it_learned(tmp_path: Path) -> None:
    loaded = Pretender()
    loaded.iteration = 7
    run = trainer(tmp_path, RolloutLog())
    run.test(loaded, DataLoader(range(1)), verbose=False)  # type: ignore[arg-type]
    run.validate(loaded, DataLoader(range(1)), verbose=False)  # type: ignore[arg-type]
    pages = {p.name for p in (tmp_path / "rollouts").glob("*_*.html")}
    assert pages == {"test_000007.html", "val_000007.html"}


def test_the_sanity_check_leaves_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path, LearningCurve(), RolloutLog(), num_sanity_val_steps=1, max_steps=0)
    fit(run, Pretender())
    assert not (tmp_path / "rollouts").exists()


def test_a_module_without_rollouts_is_named(tmp_path: Path) -> None:
    module = Pretender()
    del module.train_rollouts
    module.training_step = lambda batch, batch_idx: None  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=r"train_rollouts, a list that Pretender must set"):
        fit(trainer(tmp_path, RolloutLog()), module)


@pytest.mark.parametrize("where", ["learning_curve", "rollouts_html"])
def test_a_failed_picture_does_not_end_the_run(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    module = curve if where == "learning_curve" else rollout_files
    monkeypatch.setattr(module, where, full)
    run = trainer(tmp_path, LearningCurve(1), RolloutLog(1))
    fit(run, Pretender())
    assert run.global_step == 4
    assert any("could not" in w and "No space left" in w for w in warned(caplog))


def test_only_failures_are_cosmetic() -> None:
    with pytest.raises(KeyboardInterrupt), cosmetic("draw"):
        raise KeyboardInterrupt


def test_no_csv_logger_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trainer(tmp_path, LearningCurve(1), RolloutLog(1), logger=False)
    fit(run, Pretender())
    assert [w for w in warned(caplog) if "needs a CSVLogger" in w] == warned(caplog)
    assert len(warned(caplog)) == 1
    assert (tmp_path / "rollouts/index.html").is_file()


def test_export_replaces_and_never_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Policy, folder: Path) -> None:
        folder.mkdir()
        raise OSError(28, "No space left on device")

    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/old.bin").write_text("old")
    fit(trainer(tmp_path, ExportPolicy()), Pretender(), 2)
    assert names(tmp_path / "policy") == ["config.json"]
    monkeypatch.setattr(Policy, "save_pretrained", full)
    with pytest.raises(OSError, match="research export"):
        fit(trainer(tmp_path, ExportPolicy()), Pretender(), 2)
    assert names(tmp_path / "policy") == ["config.json"]
    assert not (tmp_path / ".policy.partial").exists()


def test_one_line_says_where_things_are(tmp_path: Path, said: list[str]) -> None:
    keep = ModelCheckpoint(tmp_path / "checkpoints", filename="best", monitor="val/f1")
    fit(trainer(tmp_path, LearningCurve(), RolloutLog(), ExportPolicy(), keep), Pretender())
    wanted = ["curve", "learning_curve.png", "rollouts", "rollouts/index.html"]
    wanted += ["policy", "policy", "checkpoint", "checkpoints/best.ckpt"]
    pairs = zip(wanted[::2], wanted[1::2], strict=True)
    assert said == ["To look at: " + ", ".join(f"{k} {tmp_path / v}" for k, v in pairs)]


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        LearningCurve(every_n_steps=0)
    with pytest.raises(ValueError, match="num_questions must be at least 1, got -1"):
        RolloutLog(num_questions=-1)


def test_first_questions_keep_their_groups() -> None:
    some = rollouts()
    order = [some[3], some[0], some[4], some[1]]
    assert first_questions(order, 1) == [0, 2]
    assert first_questions(order, None) == [0, 1, 2, 3]


def test_a_torn_row_is_dropped(tmp_path: Path) -> None:
    files = RolloutFiles(tmp_path)
    files.write("train", 0, rollouts())
    with (tmp_path / "rollouts.jsonl").open("a") as file:
        file.write('{"split": "tra')
    (tmp_path / ".train_000001.html.77.partial").write_text("half")
    files.begin(5)
    assert not list(tmp_path.glob("*.partial"))
    assert len((tmp_path / "rollouts.jsonl").read_text().splitlines()) == 5


def test_validation_line() -> None:
    metrics = {"val/f1": 0.75, "val/f1_2hop": 0.5, "val/f1_1hop": 1.0, "val/searches": 1.5}
    line = "validation at step 4: f1 0.75 (1 hop 1.00, 2 hops 0.50), searches 1.50"
    assert validation_line(metrics, 4) == line
    said = validation_line({"val/em": 0.5, "val/em_ceiling": 0.75}, 4)
    assert said == "validation at step 4: em 0.50 (ceiling 0.75)"
    assert validation_line({"train/f1": 1.0}, 4) == ""


def test_lines_where_there_is_no_terminal(
    tmp_path: Path, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(trainer(tmp_path, RunProgressBar(every_n_seconds=0)), Pretender())
    steps = [s for s in said if s.startswith("step ")]
    assert len(steps) == 4
    assert re.fullmatch(
        r"step 4 of 4, reward 0\.50, f1 0\.25, searches 1\.50, val f1 0\.75, 0:0\d gone, 0:00 left",
        steps[-1],
    )
    assert "validation at step 2: f1 0.75 (1 hop 1.00, 2 hops 0.50)" in said
    assert "\r" not in capsys.readouterr().out


def test_a_long_run_writes_few_lines(tmp_path: Path, said: list[str]) -> None:
    fit(trainer(tmp_path, RunProgressBar(every_n_seconds=3600)), Pretender(), 20)
    steps = [s.split(",")[0] for s in said if s.startswith("step ")]
    assert steps == ["step 1 of 20", "step 20 of 20"]


def test_bar_in_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_is_interactive", lambda: True)
    fit(trainer(tmp_path, RunProgressBar(), max_epochs=2), Pretender(), 2)
    shown = capsys.readouterr()
    bars = (shown.out + shown.err).replace("\r", "\n")
    assert re.search(r"train: 100%.*4/4 .*reward=0\.50, f1=0\.25, searches=1\.50", bars)
    assert "validation at step 2: f1 0.75" in bars


def test_signs_of_life_while_rollouts_are_sampled() -> None:
    said: list[str] = []
    pulse = progress.RolloutPulse(said.append, 0.02)
    pulse(0, 4, 0)
    wait_for(lambda: bool(said))
    assert said[0] == "sampling: 0 of 4 rollouts over, no turn has ended yet, 0:00 gone"
    pulse(1, 4, 90)
    assert re.fullmatch(
        r"sampling: 1 of 4 rollouts over, 90 tokens, [\d,]+ tokens/s, 0:00 gone", pulse.line()
    )
    pulse(4, 4, 400)
    time.sleep(0.05)  # a line that was begun
    told = len(said)
    time.sleep(0.3)
    assert len(said) == told, "nothing more when all are over"
    pulse(0, 2, 0)
    wait_for(lambda: len(said) > told)
    pulse.end()


def wait_for(what: Callable[[], bool]) -> None:
    for _ in range(500):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within five seconds")


def test_max_steps_counts_updates(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=6, max_epochs=-1)
    fit(run, Pretender(updates=3))
    assert total_iterations(run) == 2
