"""What is written of a policy is the policy, and a folder that is not is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import tiny

from research_rl.agents.policy import written
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.proofs import CopyError
from research_rl.agents.web import ServerEngine
from research_rl.trainers.checkpoint import save_policy

TARGETS: dict[str, list[str] | None] = {
    "head": ["lm_head"],
    "embeddings": ["embed_tokens"],
    "both": ["lm_head", "embed_tokens", "q_proj"],
    "layers": None,
}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def adapted(
    folder: Path, targets: list[str] | None, family: str = "qwen2", **more: Any
) -> LMPolicy:
    """A policy whose adapters add much."""
    pytest.importorskip("peft")
    path = tiny.checkpoint(folder / "base", family, **more)
    lora = LoraConfig(r=4, target_modules=targets)
    policy = LMPolicy.from_config(PolicyConfig(str(path), lora=lora))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in policy.trainable_parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    policy.model.eval()
    return policy


def logprobs(policy: LMPolicy) -> torch.Tensor:
    ids = torch.tensor([[1, 5, 9, 7, 30, 31, 2, 100]])
    with torch.no_grad():
        return policy(ids, torch.ones_like(ids)).logprobs


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("where", TARGETS)
def test_a_folder_is_the_policy_wherever_adapters_are(
    where: str, tied: bool, tmp_path: Path
) -> None:
    policy = adapted(tmp_path, TARGETS[where], tie_word_embeddings=tied)
    before = {name: x.clone() for name, x in policy.model.state_dict().items()}
    expected = logprobs(policy)
    save_policy(policy, tmp_path / "out")
    read = LMPolicy.from_config(PolicyConfig(str(tmp_path / "out")))
    read.model.eval()
    torch.testing.assert_close(logprobs(read), expected, atol=1e-4, rtol=1e-4)
    kept = json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert kept is (tied and where == "layers")
    model: Any = policy.model
    assert model.get_base_model().config.tie_word_embeddings is tied
    assert all(torch.equal(x, before[name]) for name, x in policy.model.state_dict().items())


def test_adapters_of_fused_experts_are_written(tmp_path: Path) -> None:
    policy = adapted(tmp_path, None, "qwen3_moe", **MIXTURE)
    save_policy(policy, tmp_path / "out")
    read = LMPolicy.from_config(PolicyConfig(str(tmp_path / "out")))
    read.model.eval()
    torch.testing.assert_close(logprobs(read), logprobs(policy), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_policy_is_read_back(dtype: torch.dtype, tmp_path: Path) -> None:
    for tied in (True, False):
        policy = tiny.policy("llama", tie_word_embeddings=tied)
        policy.model.to(dtype)
        save_policy(policy, tmp_path / f"out-{tied}")
        policy.check_written(tmp_path / f"out-{tied}")


def test_a_merge_that_loses_adapters_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = adapted(tmp_path, ["lm_head"], tie_word_embeddings=True)
    monkeypatch.setattr(written, "is_untied_by_adapter", lambda model: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()
    with pytest.raises(CopyError, match=r"the folder .*must compute what the policy does"):
        save_policy(policy, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]


@pytest.mark.parametrize("size", [1e-7, 1.0])
def test_a_weight_that_is_written_wrongly_is_found_whatever_its_size(
    size: float, tmp_path: Path
) -> None:
    policy = tiny.policy("llama")
    policy.save_pretrained(tmp_path / "out")
    with torch.no_grad():
        policy.model.model.layers[1].mlp.up_proj.weight[3, 5] += size
    with pytest.raises(CopyError, match=r"others for 1 of \d+ tensors, such as .*up_proj"):
        policy.check_written(tmp_path / "out")


def test_rollout_servers_cannot_hold_an_adapter_on_tied_embeddings(tmp_path: Path) -> None:
    policy = adapted(tmp_path, ["lm_head"], tie_word_embeddings=True)
    with pytest.raises(ValueError, match="take lm_head and embed_tokens out of"):
        ServerEngine(policy, "http://localhost:1", "m", weights="reload", folder=str(tmp_path))
