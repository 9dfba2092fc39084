"""Learning in float16: gradients keep what bfloat16 rounds away, and an overflow costs one step."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import training

from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.settings import Updates
from research_rl.trainers.updater import LossScale


def updates(dtype: Any) -> Updates:
    return Updates(group_size=4, micro_batch_size=3, max_grad_norm=None, compute_dtype=dtype)


def moved(folder: Path, policy: Path, dtype: Any, steps: int = 1, **arguments: Any) -> torch.Tensor:
    """How far a fit moves the weights."""
    trained = training.fit(
        folder, policy, steps, updates=updates(dtype), algorithm=GRPO(kl_coef=0.0), **arguments
    )
    before = training.weights(training.fit(folder / "start", policy, 0))
    return training.weights(trained) - before


def logged(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_float16_learns_what_float32_learns(tmp_path: Path, policy: Path) -> None:
    exact = moved(tmp_path / "fp32", policy, None)
    half = moved(tmp_path / "fp16", policy, "float16")
    rough = moved(tmp_path / "bf16", policy, "bfloat16")

    gaps = [(other - exact).norm() / exact.norm() for other in (half, rough)]
    assert gaps[0] < 0.01
    assert gaps[0] < gaps[1] / 2, "float16 has three bits more"
    assert logged(tmp_path / "fp16", "train/loss_scale") == [2.0**16]
    for name in ("train/loss", "train/grad_norm", "train/entropy"):
        assert logged(tmp_path / "fp16", name) == pytest.approx(
            logged(tmp_path / "fp32", name), rel=0.02
        )
    assert not logged(tmp_path / "bf16", "train/loss_scale")


def test_an_overflow_leaves_a_step_out_and_halves_the_scale(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("research_rl.trainers.updater._START", 2.0**60)

    assert not moved(tmp_path / "run", policy, "float16", steps=1).any()
    trained = training.fit(tmp_path / "more", policy, 3, updates=updates("float16"))

    skipped = trained.loss_scale.skipped
    assert skipped >= 2
    assert trained.loss_scale.value == 2.0 ** (60 - skipped)


def test_a_scale_of_one_is_not_halved() -> None:
    scale = LossScale("float16")
    scale.value = 1.0
    assert scale.unscale([], torch.tensor(torch.inf)), "Updater.clip raises"


def test_good_steps_double_it_and_a_resumed_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("research_rl.trainers.updater._PATIENCE", 3)
    scale = LossScale("float16")
    weight = torch.nn.Parameter(torch.ones(2))
    for _ in range(2):
        weight.grad = torch.full((2,), scale.value)
        assert scale.unscale([weight], torch.tensor(1.0))
        assert weight.grad.tolist() == [1.0, 1.0]

    resumed = LossScale("float16")
    resumed.load_state_dict(scale.state_dict())
    assert resumed.unscale([], torch.tensor(1.0))
    assert resumed.value == 2.0**17
    resumed.load_state_dict({})
    assert resumed.value == 2.0**17, "a checkpoint of before has none"


@pytest.mark.parametrize("dtype", [None, "bfloat16", "auto"])
def test_other_dtypes_have_no_scale(dtype: str | None) -> None:
    scale = LossScale(dtype)
    scale.load_state_dict({"value": 8.0, "good": 1, "skipped": 0})
    assert scale.value == 1.0
    assert scale.unscale([], torch.tensor(torch.inf))
