"""The guard: which rules break, what it does to a run, and that a resumed run does it too."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from doubles import training

from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.callbacks.plots import Curve, read_metrics
from research_rl.trainers.health import monitor as health
from research_rl.trainers.health.guard import (
    RULES,
    CollapseGuard,
    Rule,
    _measured,
    would_have_warned,
)
from research_rl.trainers.health.monitor import HealthMonitor
from research_rl.trainers.health.remedies import kl_coef, scale_kl, scale_learning_rate
from research_rl.trainers.settings.options import Updates

ALARM = [Rule("it always rings", "train/reward", "above", factor=0.0, plus=-1.0)]
NEVER = [Rule("it never rings", "train/reward", "above", plus=9.0)]


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these runs do; test_health looks at the picture."""
    monkeypatch.setattr(health, "health_picture", lambda _, target: target)


def test_a_rule_names_what_broke_it() -> None:
    rule = Rule("the form breaks", "train/format", "below", factor=0.5, plus=-0.25)
    assert rule.broken({"train/format": 0.25}, {"train/format": 1.0}) is None, "it is at the limit"
    assert rule.broken({"train/format": 0.2}, {"train/format": 1.0}) == (
        "the form breaks: train/format is 0.2, below 0.25 (early in the run 1)"
    )
    assert rule.broken({}, {"train/format": 0.8}) is None
    assert rule.broken({"train/format": 0.2}, {}) is None
    with pytest.raises(ValueError, match="sense must be above or below, got 'over'"):
        Rule("x", "y", "over")  # type: ignore[arg-type]


def test_a_fixed_limit_sees_a_run_that_was_ill_from_its_start() -> None:
    rule = Rule("hardly a rollout is finished", "train/truncated", "above", limit=0.95)
    assert rule.broken({"train/truncated": 1.0}, {}) == (
        "hardly a rollout is finished: train/truncated is 1, above 0.95"
    )
    assert rule.broken({"train/truncated": 0.9}, {}) is None
    with pytest.raises(ValueError, match="must have a limit or factor and plus, got both in 'x'"):
        Rule("x", "y", "above", factor=2.0, limit=1.0)

    guard = CollapseGuard()
    dead = {"train/format": 0.0, "train/truncated": 1.0, "train/mismatch_5pct": 0.94}
    found = [guard.judge({**dead, "health/all_wrong": 1.0}) for _ in range(2)]
    assert len(found[0]) == 4, "nothing to compare with, and yet"
    assert len(guard.new_alarms(found[1])) == 4


def test_a_fixed_limit_only_warns_and_lets_the_history_grow() -> None:
    guard = CollapseGuard(roll_back=True)
    for step in range(4):
        guard.judge({"health/all_wrong": 1.0, "train/searches": 3.0 + step / 10})
    found = guard.judge({"health/all_wrong": 1.0, "train/searches": 0.0})
    assert set(found) == {"hardly a group has a right answer", "it stops searching"}


def test_a_rule_that_counts_only_while_the_reward_holds() -> None:
    rule = next(r for r in RULES if r.metric == "health/right_logprob")
    early = {"health/right_logprob": -0.5, "train/reward": 0.3}
    ill = {"health/right_logprob": -1.5, "train/reward": 0.4}
    assert str(rule.broken(ill, early)).startswith("right answers grow unlikely")
    assert rule.broken({**ill, "train/reward": 0.2}, early) is None
    assert rule.broken({**ill, "health/right_logprob": -1.0}, early) is None


def test_a_mean_over_nothing_is_not_judged() -> None:
    rule = Rule("x", "a", "above", unless_below="c")
    logged = {"a": torch.tensor(math.nan), "b": torch.tensor(1.0), "c": torch.tensor(2.0)}
    assert _measured([rule], logged) == {"c": 2.0}


def judged(guard: CollapseGuard, *values: float) -> list[bool]:
    return [bool(guard.judge({"train/format": value})) for value in values]


def test_early_history_is_the_median_of_healthy_iterations() -> None:
    guard = CollapseGuard(rules=[Rule("form", "train/format", "below", factor=0.5)], early=3)
    # one value is no history; 0.2 is ill and no part of it; the fifth value is no longer early
    assert judged(guard, 1.0, 0.9, 0.2, 0.8, 0.5, 0.46, 0.44) == [
        False,
        False,
        True,
        False,
        False,
        False,
        True,
    ]
    assert guard._history == {"train/format": [1.0, 0.9, 0.8]}


def test_a_healthy_run_breaks_no_rule() -> None:
    """The course of a quickstart that reached F1 0.9, as its metrics.csv had it."""
    course = [
        (0.140, 0.977, 1.887, 0.195, 0.000, 43.4),
        (0.143, 0.977, 1.590, 0.180, 0.012, 38.9),
        (0.222, 0.992, 1.371, 0.130, 0.021, 35.5),
        (0.305, 0.945, 1.539, 0.114, 0.047, 38.1),
        (0.527, 0.980, 1.828, 0.083, 0.045, 42.5),
        (0.846, 0.973, 1.688, 0.049, 0.040, 40.4),
        (0.932, 0.988, 1.812, 0.031, 0.042, 42.2),
    ]
    names = ("reward", "format", "searches", "entropy", "kl", "sampled_tokens")
    guard = CollapseGuard()
    for row in course:
        assert guard.judge({f"train/{n}": x for n, x in zip(names, row, strict=True)}) == {}


def test_a_recorded_run_is_judged_by_what_it_logged() -> None:
    nothing = math.nan
    values = [1.0, 0.9, 1.0, 0.5, 0.9, 0.5, nothing, 0.4, 0.4, 0.9, 0.5, 0.5]
    broken = {"train/format": Curve(list(range(1, 13)), values)}
    (first, (reason,)), (second, _) = would_have_warned(broken)
    assert (first, second) == (9, 12), "two in a row that were measured, and each once"
    assert reason == ("the form breaks: train/format is 0.4, below 0.665 (early in the run 0.95)")
    assert would_have_warned({"train/other": Curve([1, 2], [0.0, 9.0])}) == []


def run(folder: Path, policy: Path, steps: int, *callbacks: pl.Callback, **more: Any) -> Any:
    trainer = training.trainer(
        folder, steps, limit_val_batches=0, callbacks=list(callbacks), **more.pop("trainer", {})
    )
    module = small(policy, **more)
    trainer.fit(module, training.Data(), ckpt_path=None)
    return trainer, module


def small(policy: Path, **more: Any) -> Any:
    return training.module(
        policy,
        algorithm=GRPO(kl_coef=0.01),
        updates=Updates(group_size=4, **more.pop("updates", {})),
        **more,
    )


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "guard.jsonl").read_text().splitlines()]


def test_it_warns_and_leaves_the_run_alone(tmp_path: Path, policy: Path) -> None:
    guard = CollapseGuard(rules=ALARM, patience=2)
    _, guarded = run(tmp_path / "a", policy, 4, HealthMonitor(0), guard)
    _, alone = run(tmp_path / "b", policy, 4)
    assert torch.equal(training.weights(guarded), training.weights(alone))
    (row,) = journal(tmp_path / "a")
    assert [row["step"], row["kind"]] == [3, "warn"], "two of history, then two in a row"
    assert "it always rings: train/reward is" in row["reasons"][0]
    metrics = read_metrics(tmp_path / "a" / "metrics.csv")
    recorded = would_have_warned(metrics, CollapseGuard(rules=ALARM, patience=2))
    assert [(step, len(reasons)) for step, reasons in recorded] == [(3, 1)], "as it was live"
    assert metrics["guard/alarms"] == ([0, 1, 2, 3], [0, 0, 1, 1])
    assert set(metrics["guard/actions"].values) == {0}


def test_it_goes_back_learns_slower_and_holds_the_policy(tmp_path: Path, policy: Path) -> None:
    guard = CollapseGuard(
        True, 0.5, 4.0, ALARM, patience=1, cooldown=0, max_actions=2, snapshot_every=1
    )
    seen: dict[int, torch.Tensor] = {}

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            seen[module.iteration] = training.weights(module).clone()

    schedule = {"lr_scheduler": lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)}
    trainer, module = run(tmp_path, policy, 5, HealthMonitor(0), guard, Look(), **schedule)
    first, second = (r for r in journal(tmp_path) if r["kind"] == "act")
    assert [first["step"], first["back_to"]] == [2, 1], "ill at 2, so what 1 iteration taught stays"
    assert [second["step"], second["back_to"]] == [3, 1]
    assert torch.equal(seen[3], seen[1])
    assert torch.equal(seen[4], seen[1])
    assert not torch.equal(seen[2], seen[1])
    rate = training.LEARNING_RATE
    group = trainer.optimizers[0].param_groups[0]
    assert [first["lr"], second["lr"], group["lr"]] == [rate / 2, rate / 4, rate / 4]
    assert group["initial_lr"] == rate / 4, "going back twice does not raise what schedulers read"
    assert [first["kl_coef"], second["kl_coef"]] == pytest.approx([0.04, 0.16])
    assert kl_coef(module.algorithm) == second["kl_coef"]
    assert module.iteration == 5, "the data go on"


def test_going_back_brings_no_former_option_of_the_optimizer(tmp_path: Path, policy: Path) -> None:
    guard = CollapseGuard(True, None, None, ALARM, patience=1, max_actions=1, snapshot_every=1)

    class Change(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            if module.iteration == 2:  # as a resumed run with another option does
                trainer.optimizers[0].param_groups[0]["momentum"] = 0.25

    trainer, _ = run(tmp_path, policy, 4, HealthMonitor(0), guard, Change())
    assert [row["back_to"] for row in journal(tmp_path) if row["kind"] == "act"] == [1]
    assert trainer.optimizers[0].param_groups[0]["momentum"] == 0.25


@pytest.mark.parametrize(("configured", "in_force"), [(0.01, 0.04), (0.5, 0.5)])
def test_a_resumed_run_has_the_kl_coef_of_the_guard_or_a_new_one_of_the_config(
    tmp_path: Path,
    policy: Path,
    configured: float,
    in_force: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def guard() -> CollapseGuard:
        return CollapseGuard(False, None, 4.0, ALARM, patience=1, max_actions=1)

    trainer, _ = run(tmp_path, policy, 4, HealthMonitor(0), guard())
    trainer.save_checkpoint(tmp_path / "cut.ckpt", weights_only=False)
    again = training.module(
        policy, algorithm=GRPO(kl_coef=configured), updates=Updates(group_size=4)
    )
    resumed = training.trainer(
        tmp_path, 5, limit_val_batches=0, callbacks=[HealthMonitor(0), guard()]
    )
    resumed.fit(again, training.Data(), ckpt_path=tmp_path / "cut.ckpt", weights_only=False)
    assert kl_coef(again.algorithm) == pytest.approx(in_force)
    assert ("no longer holds" in caplog.text) is (configured == 0.5)


def test_what_computes_in_bfloat16_goes_back_too(tmp_path: Path, policy: Path) -> None:
    guard = CollapseGuard(True, None, None, ALARM, patience=1, max_actions=1, snapshot_every=1)
    apart: dict[int, float] = {}

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            if module.iteration:
                copies = module.updater.learner.working._copies
                gaps = [(w.detach().bfloat16() - c).abs().max() for w, c in copies.items()]
                apart[module.iteration] = float(torch.stack(gaps).max())

    run(
        tmp_path,
        policy,
        4,
        HealthMonitor(0),
        guard,
        Look(),
        updates={"compute_dtype": "bfloat16"},
    )
    assert [row["step"] for row in journal(tmp_path) if row["kind"] == "act"] == [2]
    assert apart == {1: 0.0, 2: 0.0, 3: 0.0}


def test_what_the_sick_policy_sampled_ahead_is_not_learned_from(
    tmp_path: Path, policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard = CollapseGuard(True, rules=ALARM, patience=1, max_actions=1, snapshot_every=1)
    versions: list[set[int]] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            versions.append({v for r in module.train_rollouts for v in r.sequence.versions})

    run(tmp_path, policy, 5, HealthMonitor(0), guard, Look(), updates={"async_rollouts": 1})
    assert [row["step"] for row in journal(tmp_path) if row["kind"] == "act"] == [2]
    assert versions == [{0}, {0}, {1}, {3}, {3}], "3 is sampled anew by the weights put back"
    told = [r for r in caplog.records if "sampled ahead" in r.getMessage()]
    assert len(told) == 1


def test_a_resumed_run_is_the_same(tmp_path: Path, policy: Path) -> None:
    def guard() -> CollapseGuard:
        return CollapseGuard(True, 0.5, 2.0, ALARM, patience=1, cooldown=1, snapshot_every=1)

    _, whole = run(tmp_path / "whole", policy, 5, HealthMonitor(0), guard())
    trainer, _ = run(tmp_path / "cut", policy, 4, HealthMonitor(0), guard())
    trainer.save_checkpoint(tmp_path / "cut.ckpt", weights_only=False)
    again = small(policy)
    resumed = training.trainer(
        tmp_path / "cut", 5, limit_val_batches=0, callbacks=[HealthMonitor(0), guard()]
    )
    resumed.fit(again, training.Data(), ckpt_path=tmp_path / "cut.ckpt", weights_only=False)
    assert torch.equal(training.weights(again), training.weights(whole))
    assert again.algorithm.kl_coef == whole.algorithm.kl_coef
    rows, other = journal(tmp_path / "whole"), journal(tmp_path / "cut")
    assert [(r["step"], r.get("back_to"), r.get("lr")) for r in rows] == [
        (r["step"], r.get("back_to"), r.get("lr")) for r in other
    ]
    assert len(rows) >= 2


def test_a_new_run_begins_a_new_journal(tmp_path: Path, policy: Path) -> None:
    (tmp_path / "guard.jsonl").write_text('{"step": 0, "kind": "warn"}\n{"step": 1, "ki')
    run(tmp_path, policy, 1, HealthMonitor(0), CollapseGuard(rules=NEVER))
    assert journal(tmp_path) == []


def test_two_snapshots_are_kept(tmp_path: Path, policy: Path) -> None:
    guard = CollapseGuard(roll_back=True, rules=NEVER, snapshot_every=1)
    run(tmp_path, policy, 4, HealthMonitor(0), guard)
    assert sorted(p.name for p in (tmp_path / "guard").iterdir()) == [
        "good_000003.ckpt",
        "good_000004.ckpt",
    ]


@pytest.mark.parametrize("schedule", ["LinearLR", "LambdaLR", "CosineAnnealingLR"])
def test_schedulers_go_on_from_the_lower_rate(schedule: str) -> None:
    def rates(factor_at: int | None) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        options: dict[str, Any] = {
            "LinearLR": {"start_factor": 0.5, "total_iters": 3},
            "LambdaLR": {"lr_lambda": lambda step: 1 / (1 + step)},
            "CosineAnnealingLR": {"T_max": 9, "eta_min": 0.1},
        }[schedule]
        scheduler = getattr(torch.optim.lr_scheduler, schedule)(optimizer, **options)

        class Trainer:
            optimizers = [optimizer]  # noqa: RUF012
            lr_scheduler_configs = [type("Config", (), {"scheduler": scheduler})]  # noqa: RUF012

        found = []
        for step in range(6):
            if step == factor_at:
                scale_learning_rate(Trainer, 0.5)  # type: ignore[arg-type]
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    plain, halved = rates(None), rates(2)
    assert halved[:2] == plain[:2]
    assert halved[2:] == pytest.approx([rate / 2 for rate in plain[2:]])


def test_a_kl_coefficient_that_is_a_buffer() -> None:
    rule = torch.nn.Module()
    rule.register_buffer("kl_coef", torch.tensor(0.5))
    assert scale_kl(rule, 4.0) == 2.0
    assert isinstance(rule.kl_coef, torch.Tensor)
    assert kl_coef(torch.nn.Module()) is None


def test_what_cannot_work_is_refused(tmp_path: Path, policy: Path) -> None:
    with pytest.raises(ValueError, match="must stand behind a HealthMonitor"):
        run(tmp_path, policy, 1, CollapseGuard(), HealthMonitor(0))
    trainer = training.trainer(
        tmp_path, 1, callbacks=[HealthMonitor(0), CollapseGuard(kl_factor=2.0)]
    )
    with pytest.raises(ValueError, match="kl_factor must meet an algorithm with a kl_coef above 0"):
        trainer.fit(training.module(policy, algorithm=GRPO(kl_coef=0.0)), training.Data())
    for wrong in ({"lr_factor": 1.0}, {"kl_factor": 1.0}, {"early": 1}, {"patience": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CollapseGuard(**wrong)  # type: ignore[arg-type]
