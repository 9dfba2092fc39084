"""Services that a config may log to, each without a network: numbers, pictures and rollouts arrive.

W&B and MLflow are tried where they are installed: ``pip install wandb mlflow-skinny``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles.tiny_run import write_config

from research_rl.trainers.callbacks import SendAlong
from research_rl.trainers.cli import dispatch


def fit(folder: Path, monkeypatch: pytest.MonkeyPatch, logger: dict[str, Any]) -> Path:
    """Run a tiny fit with this logger beside the run's own; return its folder."""
    monkeypatch.chdir(folder)
    config = yaml.safe_load(write_config(folder).read_text("utf-8"))
    config["trainer"]["logger"] = [config["trainer"]["logger"], logger]
    drawn = [{"class_path": "LearningCurve"}, {"class_path": "HealthMonitor"}]
    config["trainer"]["callbacks"] += drawn
    Path("mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["research", "fit", "-c", "mine.yaml"])
    dispatch.main()
    return folder / "runs/tiny"


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    init = {"save_dir": "runs/tiny", "name": "", "version": "tensorboard"}
    run = fit(tmp_path, monkeypatch, {"class_path": "TensorBoardLogger", "init_args": init})
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/reward", "val/f1", "health/closed_book"} & set(tags["scalars"])
    assert set(tags["images"]) == {"learning_curve", "health"}
    assert "rollouts/0/text_summary" in tags["tensors"]


@pytest.mark.filterwarnings("ignore")
def test_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    init = {"project": "tiny", "offline": True, "save_dir": "runs/tiny"}
    run = fit(tmp_path, monkeypatch, {"class_path": "WandbLogger", "init_args": init})
    wandb.finish()
    assert "left out" not in caplog.text
    assert "no more pictures" not in caplog.text
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert list(offline.glob("run-*.wandb"))
    media = {
        p.name.partition("_0_")[0].rpartition("_")[0] or p.name for p in offline.rglob("*.png")
    }
    assert {p.suffix for p in offline.rglob("*") if p.is_file()} >= {".png", ".json"}, media
    (table, *_) = offline.rglob("*.table.json")
    assert "Question: " in json.dumps(json.loads(table.read_text()))


@pytest.mark.filterwarnings("ignore")
def test_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    init = {"experiment_name": "tiny", "tracking_uri": "file:runs/tiny/mlflow"}
    fit(tmp_path, monkeypatch, {"class_path": "MLFlowLogger", "init_args": init})
    assert "left out" not in caplog.text
    assert "no more pictures" not in caplog.text
    client = mlflow.tracking.MlflowClient("file:runs/tiny/mlflow")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert {"train/reward", "val/f1"} <= set(run.data.metrics)
    kept = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert {"learning_curve.png", "health.png", "rollouts"} <= kept


@pytest.mark.parametrize("name", ["WandbLogger", "MLFlowLogger"])
def test_a_service_that_is_not_installed_is_told_in_a_line(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = "wandb" if name == "WandbLogger" else "mlflow"
    monkeypatch.setattr("research_rl.trainers.cli.loggers.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, monkeypatch, {"class_path": name})
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("research: error: ")
    assert f"pip install {module}" in last
    assert "Traceback" not in last


@pytest.mark.filterwarnings("ignore")
def test_a_service_that_takes_no_pictures_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def gone(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("the service\nis gone")

    monkeypatch.setattr(SummaryWriter, "add_text", gone)
    init = {"save_dir": "runs/tiny", "name": "", "version": "tensorboard"}
    run = fit(tmp_path, monkeypatch, {"class_path": "TensorBoardLogger", "init_args": init})
    assert caplog.text.count("gets no more pictures and rollouts: the service is gone") == 1
    assert (run / "checkpoints/last.ckpt").is_file()


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="num_rollouts must be at least 0, got -1"):
        SendAlong(num_rollouts=-1)
