"""The quickstart's config end to end: small and fast here, as it is shipped in the slow test."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from research_rl.agents import LMPolicy, PolicyConfig
from research_rl.trainers.callbacks.plots import read_metrics
from research_rl.trainers.cli.fit import run


def shipped() -> dict[str, Any]:
    text = files("research_rl.configs").joinpath("quickstart.yaml").read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load(text)
    return config


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def research(*args: str) -> None:
    """Run a command in this process, whose number of threads stays as it was."""
    threads = torch.get_num_threads()
    try:
        run(list(args))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config that has run: the shipped one, small, with a bonus that moves weights unpaid."""
    folder = tmp_path_factory.mktemp("small")
    config = shipped()
    config["trainer"] |= {"max_steps": 2, "val_check_interval": 1}
    config["trainer"]["default_root_dir"] = str(folder / "run")
    warm = config["trainer"]["callbacks"][0]["init_args"]["config"]
    warm |= {"steps": 2, "batch_size": 4, "model": {"hidden_size": 32}}
    config["model"]["algorithm"]["init_args"]["entropy_coef"] = 0.1
    config["model"]["updates"]["group_size"] = 2
    config["model"]["sampling"]["max_response_tokens"] = 24
    config["data"]["batch_size"] = 4
    config["data"]["world"] |= {"num_people": 60, "num_train": 40, "num_val": 5, "num_test": 5}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    research("fit", "--config", str(path))
    return path


def test_the_recipe_is_the_one_that_is_documented() -> None:
    config = shipped()
    updates, data = config["model"]["updates"], config["data"]
    assert data["batch_size"] * updates["group_size"] == 256
    assert data["world"]["train_hops"] == {1: 1.0, 2: 4.0}
    assert config["model"]["policy"]["freeze_embeddings"] is True
    assert config["model"]["env"]["max_searches"] == 4


def test_one_command_leaves_everything_to_look_at(small: Path) -> None:
    folder = small.parent / "run"
    found = rows(folder / "metrics.csv")
    assert "val/f1_1hop" in found[0]  # before the first update
    assert int(found[0]["step"]) == 0
    metrics = read_metrics(folder / "metrics.csv")
    assert metrics["val/f1_2hop"].steps == [0, 1, 2]
    assert len(metrics["train/searches_2hop"].values) == 2
    for name in (
        "learning_curve.png",
        "rollouts/index.html",
        "checkpoints/last.ckpt",
        "config.yaml",
    ):
        assert (folder / name).is_file(), name
    assert list(folder.glob("tensorboard/events*"))
    report = json.loads((folder / "warmstart" / "warmstart.json").read_text(encoding="utf-8"))
    assert report["settings"]["num_people"] == 60
    before = LMPolicy.from_config(PolicyConfig(str(folder / "warmstart")))
    after = LMPolicy.from_config(PolicyConfig(str(folder / "policy")))
    moved = {
        name: not torch.equal(p, after.state_dict()[name])
        for name, p in before.state_dict().items()
    }
    assert any(moved.values())
    assert not moved["model.model.embed_tokens.weight"]


def test_its_own_test_people_are_asked_after_training(small: Path) -> None:
    folder = small.parent / "run"
    made = (folder / "warmstart" / "model.safetensors").stat().st_mtime_ns
    research("test", "--config", str(small), "--ckpt_path", "last")
    assert (folder / "warmstart" / "model.safetensors").stat().st_mtime_ns == made
    (row,) = rows(folder / "test" / "metrics.csv")
    assert 0 <= float(row["test/f1_2hop"]) <= 1


@pytest.mark.slow
def test_the_shipped_quickstart_learns_to_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    research("fit", "--config", "quickstart")
    research("test", "--config", "quickstart", "--ckpt_path", "last")
    start = rows(Path("runs/quickstart/metrics.csv"))[0]
    assert float(start["val/f1"]) <= 0.35
    (end,) = rows(Path("runs/quickstart/test/metrics.csv"))
    for hops in (1, 2):
        assert float(end[f"test/f1_{hops}hop"]) >= 0.95
        assert float(end[f"test/chain_{hops}hop"]) >= 0.9
        assert float(end[f"test/format_{hops}hop"]) >= 0.98
        assert float(end[f"test/searches_{hops}hop"]) == pytest.approx(hops, abs=0.1)
