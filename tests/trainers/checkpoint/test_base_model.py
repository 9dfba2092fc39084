"""An adapter is not put on another base than its own, and another reference is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import training

from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.checkpoint.base_model import BASE_KEY, base_files
from research_rl.trainers.checkpoint.export import load_weights
from research_rl.trainers.settings.errors import is_users_mistake

pytestmark = pytest.mark.filterwarnings("ignore")
LORA = LoraConfig(r=2)


def fit(folder: Path, policy: PolicyConfig, steps: int, start: Path | None = None) -> Path:
    """Train to ``steps``, on from a checkpoint if there is one, and return another."""
    trainer = training.trainer(folder, steps, limit_val_batches=0)
    kl = GRPO(kl_coef=0.0 if policy.freeze_embeddings else 0.1)
    trainer.fit(training.module(policy, algorithm=kl), training.Data(), ckpt_path=start)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return folder / f"{steps}.ckpt"


@pytest.fixture
def base(policy: Path, tmp_path: Path) -> Path:
    return shutil.copytree(policy, tmp_path / "base")


def replace(base: Path, seed: int = 9) -> None:
    """Put other weights in the folder, as a run that is made again does."""
    other = LMPolicy.from_config(PolicyConfig(str(base)))
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    other.save_pretrained(base)


def test_an_adapter_on_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    config = PolicyConfig(str(base), lora=LORA)
    file = fit(tmp_path, config, 1)
    moved = PolicyConfig(str(shutil.copytree(base, tmp_path / "moved")), lora=LORA)
    load_weights(LMPolicy.from_config(moved), file, moved)
    fit(tmp_path, moved, 2, file)
    replace(base)

    def validate() -> None:
        module = training.module(config)
        training.trainer(tmp_path).validate(
            module, training.Data(), ckpt_path=str(file), verbose=False
        )

    refused: list[Callable[[], Any]] = [
        lambda: fit(tmp_path, config, 3, file),
        validate,
        lambda: load_weights(LMPolicy.from_config(config), file, config),
    ]
    for use in refused:
        with pytest.raises(ValueError, match=f"got others in {base}") as error:
            use()
        assert is_users_mistake(error.value)
    old = torch.load(file, weights_only=True)
    del old[BASE_KEY]
    torch.save(old, tmp_path / "old.ckpt")
    fit(tmp_path, config, 3, tmp_path / "old.ckpt")  # of a version that did not say it


def test_another_reference_is_told_once(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = PolicyConfig(str(base))
    first = fit(tmp_path, config, 1)
    second = fit(tmp_path, config, 2, first)
    assert "the KL is measured" not in caplog.text
    replace(base)
    third = fit(tmp_path, config, 3, second)
    assert caplog.text.count(f"the weights in {base} are others") == 1
    fit(tmp_path, config, 4, third)
    assert caplog.text.count(f"the weights in {base} are others") == 1
    load_weights(LMPolicy.from_config(config), first, config)  # it holds every weight itself


def test_what_does_not_matter_is_not_read(base: Path, tmp_path: Path) -> None:
    file = fit(tmp_path, PolicyConfig(str(base), freeze_embeddings=True), 1)  # without a KL
    assert BASE_KEY not in torch.load(file, weights_only=True)
    assert base_files(PolicyConfig("Qwen/of-the-hub")) is None


def test_a_base_that_is_replaced_while_a_run_trains_on_it_is_another(
    base: Path, tmp_path: Path
) -> None:
    module = training.module(PolicyConfig(str(base), lora=LORA))
    trainer = training.trainer(tmp_path, 1, limit_val_batches=0)
    before = base_files(module.policy_config)
    trainer.fit(module, training.Data())
    replace(base)
    trainer.save_checkpoint(tmp_path / "late.ckpt")
    assert torch.load(tmp_path / "late.ckpt", weights_only=True)[BASE_KEY] == before
