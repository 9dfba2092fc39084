"""Dropout of the base model is off in reinforcement learning, unless it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import tiny

from research_rl.agents.policy import LMPolicy, Reference
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.notice import notice

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
NOISY: dict[str, dict[str, Any]] = {
    "gpt2": {},  # nn.Dropout
    "opt": {"dropout": 0.3, "word_embed_proj_dim": 32, "ffn_dim": 64},  # in functions, by module
    "qwen2": {"attention_dropout": 0.4},  # handed to the attention
    "xglm": {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 64, "layerdrop": 0.3},
    "mixtral": {**MOE, "router_jitter_noise": 0.3},
    "phimoe": {**MOE, "input_jitter_noise": 0.3, "router_jitter_noise": 0.01},
}


def ids() -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(24).view(2, 12) * 7 % 200
    return rows, torch.ones_like(rows)


@pytest.mark.parametrize("family", NOISY)
def test_the_learner_is_the_policy_that_samples(family: str, tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path, family, **NOISY[family])
    notice.cache_clear()
    policy = LMPolicy.from_config(PolicyConfig(str(tmp_path))).train()
    learned = policy(*ids()).logprobs
    assert torch.equal(learned, policy(*ids()).logprobs)
    torch.testing.assert_close(learned, policy.eval()(*ids()).logprobs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        learned.detach(), Reference(policy.train()).logprobs(*ids()), atol=1e-6, rtol=1e-5
    )
    kept = LMPolicy.from_config(PolicyConfig(str(tmp_path), dropout=True)).train()
    assert not torch.allclose(kept(*ids()).logprobs, kept(*ids()).logprobs, atol=1e-3)
    torch.testing.assert_close(kept.eval()(*ids()).logprobs, learned, atol=1e-6, rtol=1e-5)


def test_what_was_on_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.checkpoint(tmp_path, "gpt2")
    notice.cache_clear()
    for _ in range(2):
        LMPolicy.from_config(PolicyConfig(str(tmp_path)))
    (told,) = caplog.records
    assert "dropout of the base model is off (nn.Dropout 0.1)" in told.getMessage()
    LMPolicy.from_config(PolicyConfig(str(tiny.checkpoint(tmp_path / "qwen2"))))
    assert len(caplog.records) == 1


def test_an_exported_policy_has_the_dropout_of_its_model(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "model", "gpt2")
    policy = LMPolicy.from_config(PolicyConfig(str(tmp_path / "model")))
    policy.save_pretrained(tmp_path / "exported")
    said, was = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("exported", "model")
    )
    assert said["resid_pdrop"] == was["resid_pdrop"] == 0.1
    assert policy.model.config.resid_pdrop == 0.0


def test_dropout_of_an_adapter_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny.checkpoint(tmp_path, "gpt2")
    config = PolicyConfig(str(tmp_path), lora=LoraConfig(r=2, dropout=0.5))
    layers = LMPolicy.from_config(config).modules()
    assert {m.p for m in layers if isinstance(m, torch.nn.Dropout)} == {0.0, 0.5}
