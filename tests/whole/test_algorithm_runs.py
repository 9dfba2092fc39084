"""Every shipped algorithm trains through the command line, with critics, credits and buffers."""

from __future__ import annotations

from pathlib import Path

import pytest
from doubles import tiny_run

from research_rl.trainers.callbacks.plots import read_metrics
from research_rl.trainers.cli.fit import run
from research_rl.trainers.settings.shipped import shipped_configs

NAMES = [name for name in shipped_configs() if name.startswith("algorithm/")]
FAST, SLOW = ("algorithm/igpo",), pytest.mark.slow
STEPS = ["--trainer.max_steps", "2", "--model.updates.num_minibatches", "2"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["research"])
    return str(tiny_run.write_config(tmp_path))


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=SLOW) for n in NAMES])
def test_trains(name: str, config: str) -> None:
    budget = ["--model.sampling.max_response_tokens", "24"]  # room for DAPO's soft punishment
    trained = run(["fit", "--config", config, "--config", name, *STEPS, *budget])
    metrics = read_metrics("runs/tiny/metrics.csv")
    assert trained.model.iteration == 1
    assert metrics["train/entropy"].values[0] > 0
    assert ("train/kl" in metrics) is trained.model.algorithm.needs_reference
    assert ("train/value_loss" in metrics) is trained.model.algorithm.needs_values


def test_a_resumed_run_keeps_the_kl_coefficient_and_the_critic(config: str) -> None:
    control = ["--model.algorithm.kl_control", "{target: 1.0e-9, gain: 0.5}"]
    arguments = ["fit", "--config", config, "--config", "algorithm/ppo", *control, *STEPS]
    rule = run(arguments).model.algorithm
    assert float(rule.kl_scale) != 1
    assert int(rule.num_updates) == 2
    again = run([*arguments, "--ckpt_path", "last"]).model.algorithm
    assert float(again.kl_scale) == float(rule.kl_scale)
    assert int(again.num_updates) == 2
    assert bool((again.head.bias == rule.head.bias).all())


def test_a_run_with_a_price_logs_what_was_charged(config: str) -> None:
    run(["fit", "--config", config, "--config", "price/searches", "--model.price.coef", "0.2"])
    metrics = read_metrics("runs/tiny/metrics.csv")
    assert len(metrics["train/price"].values) == len(metrics["train/charged"].values) == 2


def test_a_run_with_terms_logs_its_parts(config: str) -> None:
    terms = "{terms: {answer: 0.8, evidence: {weight: {0: 0.0, 2: 0.2}}}}"
    trained = run(["fit", "--config", config, "--model.env.reward", terms])
    metrics = read_metrics("runs/tiny/metrics.csv")
    for name in ("answer", "evidence"):
        assert {len(metrics[f"{split}/part_{name}"].values) for split in ("train", "val")} == {2, 3}
    assert trained.model.env_config.reward.terms["answer"] == 0.8
