"""Metrics that only some iterations have: no guard judges the value of a former iteration again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from doubles import training

from research_rl.trainers import module as modules
from research_rl.trainers.callbacks.plots import read_metrics
from research_rl.trainers.health import monitor as health
from research_rl.trainers.health.guard import CollapseGuard, Rule, would_have_warned
from research_rl.trainers.health.monitor import HealthMonitor

STEPS = 5


def watch(metric: str) -> CollapseGuard:
    return CollapseGuard(rules=[Rule("it rose", metric, "above", plus=0.5)], patience=2)


def run(folder: Path, policy: Path, guard: CollapseGuard, **more: Any) -> Any:
    settings = {"limit_val_batches": 0, **more.pop("trainer", {})}
    trainer = training.trainer(
        folder, more.pop("steps", STEPS), callbacks=[HealthMonitor(0), guard], **settings
    )
    trainer.fit(training.module(policy), training.Data(), weights_only=False, **more)
    return trainer


def live(folder: Path) -> list[int]:
    rows = (folder / "guard.jsonl").read_text() if (folder / "guard.jsonl").is_file() else ""
    return [json.loads(row)["step"] for row in rows.splitlines()]


def recorded(folder: Path, metric: str) -> list[int]:
    return [s for s, _ in would_have_warned(read_metrics(folder / "metrics.csv"), watch(metric))]


@pytest.mark.parametrize(
    ("measured", "warned"),
    [([0.0, 0.0, 1.0, None, None], []), ([0.0, None, 0.0, 1.0, 1.0], [4])],
)
@pytest.mark.parametrize("metric", ["health/sign", "train/sign"])
def test_only_what_an_iteration_measured_is_judged(
    tmp_path: Path,
    policy: Path,
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    measured: list[float | None],
    warned: list[int],
) -> None:
    monkeypatch.setattr(health, "health_picture", lambda _, target: target)
    found = iter([{} if x is None else {"sign": x} for x in measured])
    if metric == "health/sign":
        monkeypatch.setattr(health, "average", lambda rows, by_hop: next(found))
    else:
        monkeypatch.setattr(modules, "means_of", lambda rollouts, **_: {"f1": 0.0, **next(found)})
    run(tmp_path, policy, watch(metric))
    assert live(tmp_path) == warned
    assert recorded(tmp_path, metric) == warned, "as it was live"


def test_a_validation_holds_until_the_next_one_in_a_resumed_run_too(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "health_picture", lambda _, target: target)

    learned = [0]

    def means(rollouts: Any, **options: Any) -> dict[str, float]:
        learned[0] += "by_hop" in options  # those of an iteration, not of a validation
        return {"f1": float(learned[0] >= 2)}

    monkeypatch.setattr(modules, "means_of", means)
    every_two = {"limit_val_batches": 1, "val_check_interval": 2}
    run(tmp_path / "whole", policy, watch("val/f1"), trainer=every_two)
    assert live(tmp_path / "whole") == [3], "found before 2, so broken in 2 and 3"
    assert recorded(tmp_path / "whole", "val/f1") == [3]

    learned[0] = 0
    folder, guard = tmp_path / "cut", watch("val/f1")
    trainer = run(folder, policy, guard, steps=2, trainer=every_two)
    trainer.save_checkpoint(tmp_path / "cut.ckpt", weights_only=False)
    resumed = watch("val/f1")
    run(folder, policy, resumed, trainer=every_two, ckpt_path=tmp_path / "cut.ckpt")
    assert live(folder) == [3]
    older = {k: value for k, value in guard.state_dict().items() if k != "validated"}
    watch("val/f1").load_state_dict(older)  # of a run before validations were kept
