"""A correction is in force wherever the sampler is another one than the learner."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import tiny, training

from research_rl.agents import CachedEngine
from research_rl.trainers import sampler
from research_rl.trainers.algorithms import GRPO, Correction
from research_rl.trainers.sampler import sampler_differs
from research_rl.trainers.settings import Updates


class Elsewhere(CachedEngine):
    holds_weights = True


def engine(dtype: str | None, **_: Any) -> Any:
    return lambda policy: CachedEngine(policy, dtype=dtype)  # type: ignore[arg-type]


BF16 = Updates(compute_dtype="bfloat16")


@pytest.mark.parametrize(
    ("dtype", "updates", "precision", "reason"),
    [
        (None, Updates(), "32-true", None),
        ("float32", Updates(), "32-true", None),
        (None, Updates(), "bf16-mixed", "sampled in float32 and learned from in bfloat16"),
        (None, BF16, "bf16-mixed", "sampled in float32 and learned from in bfloat16"),
        ("bfloat16", Updates(), "bf16-mixed", "sampled from a copy in bfloat16"),
        ("bfloat16", Updates(), "32-true", "sampled in bfloat16 and learned from in float32"),
        ("bfloat16", BF16, "32-true", "sampled from a copy in bfloat16"),
        (None, BF16, "32-true", "sampled in float32 and learned from in bfloat16"),
        ("float16", BF16, "32-true", "sampled in float16 and learned from in bfloat16"),
        (None, Updates(async_rollouts=1), "32-true", "sampled one update ahead"),
    ],
)
def test_why_a_sampler_differs(
    dtype: str | None, updates: Updates, precision: str, reason: str | None
) -> None:
    policy = tiny.policy()
    found = sampler_differs(policy, engine(dtype)(policy), updates, precision)
    assert (found or "").endswith(reason or "")
    assert (found is None) == (reason is None)


@pytest.mark.parametrize(
    ("dtype", "updates", "reason"),
    [
        (None, Updates(), None),
        (None, BF16, "rollouts are sampled from a copy in bfloat16"),
        ("float32", BF16, "rollouts are sampled in float32 and learned from in bfloat16"),
    ],
)
def test_shards_are_gathered_in_the_dtype_of_the_learner(
    dtype: str | None, updates: Updates, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "is_sharded", lambda _: True)
    policy = tiny.policy()
    assert sampler_differs(policy, engine(dtype)(policy), updates) == reason


def test_servers_differ_whatever_they_compute_in() -> None:
    policy = tiny.policy()
    assert sampler_differs(policy, Elsewhere(policy), Updates()) == (
        "rollouts are sampled by servers"
    )


@pytest.mark.parametrize(
    ("dtype", "asked", "in_force"),
    [
        (None, "auto", None),
        ("bfloat16", "auto", Correction()),
        ("bfloat16", None, None),
        (None, Correction("mask"), Correction("mask")),
    ],
)
def test_a_fit_takes_the_correction_that_it_needs(
    dtype: str | None,
    asked: Any,
    in_force: Correction | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = training.checkpoint(tmp_path / "policy")
    with caplog.at_level(logging.INFO):
        trained = training.fit(
            tmp_path / "run",
            policy,
            steps=1,
            algorithm=GRPO(kl_coef=0.0, correction=asked),
            engine=engine(dtype),
        )
    assert trained.algorithm.correction == in_force
    told = [r.getMessage() for r in caplog.records if "weighed by its probability" in r.message]
    assert len(told) == (asked == "auto" and in_force is not None)
    logged = "train/corrected" in trained.trainer.callback_metrics
    assert logged == (in_force is not None)


def test_mixed_precision_samples_in_the_weights_own_dtype(tmp_path: Path) -> None:
    cast: list[bool] = []

    class Watched(CachedEngine):
        def run(self, *args: Any, **settings: Any) -> Any:
            cast.append(torch.is_autocast_enabled("cpu"))
            return super().run(*args, **settings)

    trained = training.module(
        training.checkpoint(tmp_path / "policy"), algorithm=GRPO(kl_coef=0.0), engine=Watched
    )
    run = training.trainer(tmp_path / "run", 1, precision="bf16-mixed", limit_val_batches=0)
    run.fit(trained, training.Data())
    assert cast == [False]
    assert trained.algorithm.correction == Correction()
    assert float(run.callback_metrics["train/mismatch_mean"]) > 1e-5


def test_the_correction_bounds_what_a_token_weighs() -> None:
    rule = GRPO()
    rule.correct("another dtype samples")
    assert rule.correction is not None
    assert rule.correction.kind == "truncate"
    assert torch.tensor(rule.correction.high) == 2.0
