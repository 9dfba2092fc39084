"""Run folders of version 0.1.0, whose configs name classes by their former places, still work."""

from __future__ import annotations

import importlib
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from doubles.tiny_run import write_config

from research_rl.trainers.cli import main
from research_rl.trainers.settings.moved import MOVED, answer_for_moved_modules

SAVED = {  # as config.yaml of 0.1.0 has them, and the names their classes have today
    "research_rl.agents.CachedEngine": "CachedEngine",
    "research_rl.agents.ReferenceEngine": "ReferenceEngine",
    "research_rl.agents.ServerEngine": "ServerEngine",
    "research_rl.agents.streaming.StreamingEngine": "StreamingEngine",
    "research_rl.envs.DefaultReward": "DefaultReward",
    "research_rl.envs.retrieval.BM25Retriever": "BM25Retriever",
    "research_rl.envs.retrieval.GpuFaissRetriever": "GpuFaissRetriever",
    "research_rl.envs.retrieval.HybridRetriever": "HybridRetriever",
    "research_rl.envs.retrieval.RemoteRetriever": "RemoteRetriever",
    "research_rl.envs.retrieval.RerankRetriever": "RerankRetriever",
    "research_rl.envs.retrieval.TorchFlatRetriever": "TorchFlatRetriever",
    "research_rl.trainers.algorithms.GRPO": "GRPO",
    "research_rl.trainers.algorithms.PPO": "PPO",
    "research_rl.trainers.algorithms.base.Algorithm": "Algorithm",
    "research_rl.trainers.callbacks.ExportPolicy": "ExportPolicy",
    "research_rl.trainers.callbacks.LearningCurve": "LearningCurve",
    "research_rl.trainers.callbacks.RolloutLog": "RolloutLog",
    "research_rl.trainers.checkpoint.RunCheckpoint": "RunCheckpoint",
    "research_rl.trainers.checkpoint_files.AtomicCheckpointIO": "AtomicCheckpointIO",
    "research_rl.trainers.counterfactual.CounterfactualCredit": "CounterfactualCredit",
    "research_rl.trainers.credit.InformationGain": "InformationGain",
    "research_rl.trainers.credit.StepGroups": "StepGroups",
    "research_rl.trainers.guard.CollapseGuard": "CollapseGuard",
    "research_rl.trainers.health.HealthMonitor": "HealthMonitor",
    "research_rl.trainers.progress.RunProgressBar": "RunProgressBar",
    "research_rl.trainers.recorder.FlightRecorder": "FlightRecorder",
    "research_rl.trainers.sharding.ShardedStrategy": "ShardedStrategy",
    "research_rl.trainers.warmstart.WarmStart": "WarmStart",
}
BY_HAND = {  # longer paths that somebody may have written
    "research_rl.agents.cached.CachedEngine": "CachedEngine",
    "research_rl.agents.engine.ReferenceEngine": "ReferenceEngine",
    "research_rl.agents.generate.LocalGenerator": "LocalGenerator",
    "research_rl.agents.ircot.IRCoT": "IRCoT",
    "research_rl.agents.iter_retgen.IterRetGen": "IterRetGen",
    "research_rl.agents.naive.NaiveRAG": "NaiveRAG",
    "research_rl.agents.openai_api.OpenAIGenerator": "OpenAIGenerator",
    "research_rl.agents.research.ReSearchAgent": "ReSearchAgent",
    "research_rl.agents.served.ReSearch": "ReSearch",
    "research_rl.agents.server.ServerEngine": "ServerEngine",
    "research_rl.envs.retrieval.bm25.BM25Retriever": "BM25Retriever",
    "research_rl.envs.retrieval.dense.DenseRetriever": "DenseRetriever",
    "research_rl.envs.retrieval.gpu.GpuFaissRetriever": "GpuFaissRetriever",
    "research_rl.envs.retrieval.hf_encoder.HFEncoder": "HFEncoder",
    "research_rl.envs.retrieval.remote.RemoteRetriever": "RemoteRetriever",
    "research_rl.envs.retrieval.torch_search.TorchFlatRetriever": "TorchFlatRetriever",
    "research_rl.envs.rewards.PaperReward": "PaperReward",
}
FORMER = {  # today's short names as a 0.1.0 config has them
    "RunCheckpoint": "research_rl.trainers.checkpoint.RunCheckpoint",
    "LearningCurve": "research_rl.trainers.callbacks.LearningCurve",
    "CollapseGuard": "research_rl.trainers.guard.CollapseGuard",
    "HealthMonitor": "research_rl.trainers.health.HealthMonitor",
    "FlightRecorder": "research_rl.trainers.recorder.FlightRecorder",
    "GRPO": "research_rl.trainers.algorithms.GRPO",
    "CachedEngine": "research_rl.agents.cached.CachedEngine",
    "CounterfactualCredit": "research_rl.trainers.counterfactual.CounterfactualCredit",
}


@pytest.mark.parametrize(("path", "name"), [*SAVED.items(), *BY_HAND.items()])
def test_a_former_class_path_is_found(path: str, name: str) -> None:
    answer_for_moved_modules()
    module, _, attribute = path.rpartition(".")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, type)
    assert found.__name__ == name


@pytest.mark.parametrize("old", sorted(MOVED))
def test_every_moved_module_is_answered_for_by_a_door(old: str) -> None:
    answer_for_moved_modules()
    assert any(path.startswith(f"{old}.") for path in (*SAVED, *BY_HAND)) or old in (
        "research_rl.trainers.metrics_file",
        "research_rl.trainers.stopping",
    )
    door = importlib.import_module(MOVED[old])
    assert door.__spec__ is not None
    assert door.__spec__.submodule_search_locations, "a room, not a module in it"
    with pytest.raises(AttributeError):
        importlib.import_module(old).NothingLikeThis  # noqa: B018


def test_a_moved_class_says_where_it_is() -> None:
    answer_for_moved_modules()
    module = importlib.import_module("research_rl.trainers.guard")
    with pytest.warns(FutureWarning, match=r"write research_rl\.trainers\.health\.CollapseGuard"):
        assert module.CollapseGuard.__name__ == "CollapseGuard"


def research(monkeypatch: pytest.MonkeyPatch, *args: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["research", *map(str, args)])
    main()


def with_former_paths(value: Any) -> Any:
    """Return a config with the class paths that 0.1.0 would have saved."""
    if isinstance(value, dict):
        return {
            k: FORMER.get(str(v).rpartition(".")[2], v)
            if k == "class_path"
            else with_former_paths(v)
            for k, v in value.items()
        }
    return [with_former_paths(one) for one in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def older_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seconds with the config that 0.1.0 would have saved for it."""
    folder = tmp_path_factory.mktemp("older")
    config = write_config(folder)
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["callbacks"] += [
        {"class_path": "LearningCurve"},
        {"class_path": "HealthMonitor"},
        {"class_path": "CollapseGuard"},
        {"class_path": "FlightRecorder"},
    ]
    settings["model"]["algorithm"] = {"class_path": "GRPO"}
    settings["model"]["engine"] = {"class_path": "CachedEngine"}
    config.write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        research(patch, "fit", "--config", config)
    saved = folder / "runs/tiny/config.yaml"
    former = with_former_paths(yaml.safe_load(saved.read_text()))
    saved.write_text(yaml.safe_dump(former, sort_keys=False))
    assert "research_rl.trainers.guard.CollapseGuard" in saved.read_text()
    return folder


@pytest.fixture
def run(older_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(older_run / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/tiny"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_older_run_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = ["--config", run / "config.yaml", "--ckpt_path", "last", "--trainer.max_steps", 3]
    research(monkeypatch, "fit", *config)
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert "another option" not in caplog.text


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_older_run_is_validated_exported_and_evaluated(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run / "config.yaml"
    research(monkeypatch, "validate", "--config", config, "--ckpt_path", "last")
    assert (run / "validate/metrics.csv").is_file()
    checkpoint = run / "checkpoints/last.ckpt"
    research(monkeypatch, "export", "--ckpt", checkpoint, "--out", "exported")
    assert (Path("exported") / "model.safetensors").is_file()
    evaluation = {
        "reference": "Naive",
        "run": "runs/nowhere",
        "out": "evaluation",
        "models": {"tiny": {"run": "${run}", "checkpoint": "last"}},
        "datasets": {"few": {"world": {"hops": {1: 1.0}, "num_questions": 2}}},
        "methods": {
            "Naive": {
                "class_path": "NaiveGeneration",
                "init_args": {"max_tokens": 4, "prompt": "{question}"},
            }
        },
    }
    Path("evaluation.yaml").write_text(yaml.safe_dump(evaluation))
    research(monkeypatch, "evaluate", "--config", "evaluation.yaml", "--run", run)
    assert len(Path("evaluation/rows.jsonl").read_text().splitlines()) == 2
