"""With the kernels of this package turned off, a run is the same run by the models' own modules."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import training
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model, Qwen2RMSNorm

from research_rl.agents.kernels import PLAIN_KERNELS
from research_rl.agents.kernels import torch_internals as internals
from research_rl.agents.policy.loading import PolicyConfig
from research_rl.agents.policy.policy import LMPolicy

NEAR = 1e-5
NEVER = ("over_lengths", "over_lengths_backward", "softmax_backward", "silu_backward")


def iteration(folder: Path, policy: Path) -> tuple[Any, dict[str, float]]:
    """Sample eight rollouts and learn from them; return the module and what it logged."""
    trained = training.fit(folder, policy, steps=1)
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return trained, {k: float(v) for k, v in row.items() if "time/" not in k}


@pytest.mark.filterwarnings("ignore")
def test_an_iteration_is_the_same_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = training.checkpoint(tmp_path / "policy")
    calls: list[str] = []
    for cls in (Qwen2Model, Qwen2RMSNorm):
        forward = cls.forward

        def watched(self: Any, *args: Any, _forward: Any = forward, **kwargs: Any) -> Any:
            calls.append(type(self).__name__)
            return _forward(self, *args, **kwargs)

        monkeypatch.setattr(cls, "forward", watched)
    ours, logged = iteration(tmp_path / "on", policy)
    by_ours = len(calls)
    calls.clear()

    def refuse(*_: Any) -> Any:
        raise AssertionError("a private kernel was called")

    monkeypatch.setenv(PLAIN_KERNELS, "1")
    for name in NEVER:
        monkeypatch.setattr(internals, name, refuse)
        monkeypatch.setattr(f"research_rl.agents.kernels.fused_ops.{name}", refuse, raising=False)
    plain, logged_plain = iteration(tmp_path / "off", policy)
    # the proofs of engine and learner call the model's modules in both runs
    assert len(calls) > 2 * by_ours, "the models' modules must compute every step"
    tokens = [[r.sequence.response_ids for r in m.train_rollouts] for m in (ours, plain)]
    assert tokens[0] == tokens[1]
    for a, b in zip(ours.train_rollouts, plain.train_rollouts, strict=True):
        torch.testing.assert_close(a.sequence.logprobs, b.sequence.logprobs, rtol=NEAR, atol=NEAR)
    assert logged == pytest.approx(logged_plain, rel=NEAR, abs=NEAR)
    assert float((training.weights(ours) - training.weights(plain)).abs().max()) < NEAR
    begun = LMPolicy.from_config(PolicyConfig(str(policy))).parameters()
    start = torch.cat([weight.detach().flatten() for weight in begun])
    assert float((training.weights(ours) - start).abs().max()) > 100 * NEAR  # something was learned
