"""What must hold of a training run, whatever the algorithm: exact splits, exact resume, logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from doubles.training import (
    LEARNING_RATE,
    ConstantReward,
    Data,
    checkpoint,
    env,
    fit,
    module,
    rows,
    start,
    trainer,
    weights,
)

from research_rl.agents.kernels.packing import pack
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import PolicyOutput
from research_rl.trainers.algorithms import GRPO
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.learner import MISMATCH, Learner
from research_rl.trainers.settings.options import Updates

SEVERAL: dict[str, Any] = {"group_size": 4, "num_epochs": 2, "num_minibatches": 2}


# -- updates


def test_micro_batches_do_not_change_the_weights(policy: Path, tmp_path: Path) -> None:
    found = [
        fit(tmp_path / f"{size}-{tokens}", policy, updates=Updates(**SEVERAL, **sizes))
        for size, tokens in ((8, None), (3, None), (1, None), (8, 150))
        for sizes in [{"micro_batch_size": size, "micro_batch_tokens": tokens}]
    ]
    moved = weights(found[0]) - weights(start(policy, tmp_path))
    assert float(moved.norm()) > 1e-3
    for other in found[1:]:
        assert torch.allclose(weights(other), weights(found[0]), atol=1e-6)


def test_old_logprobs_are_those_of_the_sampling_policy(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Batch] = []
    loss = GRPO.loss

    def spy(self: GRPO, out: PolicyOutput, batch: Batch) -> Any:
        seen.append(batch)
        return loss(self, out, batch)

    monkeypatch.setattr(GRPO, "loss", spy)
    fit(tmp_path / "one", policy, steps=1)
    assert all(batch.old_logprobs is None for batch in seen)
    seen.clear()
    fit(tmp_path / "four", policy, steps=4, updates=Updates(**SEVERAL))
    for batch in seen:
        assert batch.old_logprobs is not None
        old, sampled = batch.old_logprobs[batch.loss_mask], batch.sampled_logprobs[batch.loss_mask]
        assert torch.allclose(old, sampled, atol=1e-5)


@pytest.mark.parametrize("coefficient", [0.0, 0.01])
def test_the_entropy_has_a_graph_only_where_it_is_learned_from(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coefficient: float
) -> None:
    seen: list[bool] = []
    loss = GRPO.loss

    def spy(self: GRPO, out: PolicyOutput, batch: Batch) -> Any:
        assert out.entropy is not None
        seen.append(out.entropy.requires_grad)
        return loss(self, out, batch)

    monkeypatch.setattr(GRPO, "loss", spy)
    fit(tmp_path, policy, steps=1, algorithm=GRPO(entropy_coef=coefficient))
    assert set(seen) == {coefficient > 0}


def test_one_update_is_the_first_of_several(policy: Path, tmp_path: Path) -> None:
    # with a ratio of 1, using the policy's own log-probs as old ones changes nothing
    one = fit(tmp_path / "one", policy, steps=1)
    two = fit(tmp_path / "two", policy, steps=2, updates=Updates(4, num_epochs=2))
    frozen = module(policy, updates=Updates(4, num_epochs=2), lr_scheduler=first_step_only)
    trainer(tmp_path / "frozen", 2, limit_val_batches=0).fit(frozen, Data())
    assert torch.allclose(weights(frozen), weights(one), atol=1e-6)
    assert not torch.allclose(weights(two), weights(one), atol=1e-6)


def first_step_only(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))


def test_the_first_kl_and_clip_fraction_are_zero(policy: Path, tmp_path: Path) -> None:
    fit(tmp_path, policy, steps=1)
    row = rows(tmp_path)[0]
    assert float(row["train/kl"]) == pytest.approx(0.0, abs=1e-6)
    assert float(row["train/clip_frac"]) == 0.0
    assert float(row["train/entropy"]) > 0


def test_a_model_with_dropout_is_its_own_reference_at_the_first_step(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", family="gpt2")
    found = {}
    for dropout in (False, True):
        fit(tmp_path / str(dropout), PolicyConfig(str(folder), dropout=dropout), steps=1)
        (found[dropout],) = [r for r in rows(tmp_path / str(dropout)) if "train/kl" in r]
    assert float(found[False]["train/kl"]) == pytest.approx(0.0, abs=1e-6)
    assert float(found[False]["train/mismatch_mean"]) < 1e-4
    assert float(found[False]["train/mismatch_5pct"]) == 0.0
    assert float(found[True]["train/kl"]) > 1e-3
    assert float(found[True]["train/mismatch_5pct"]) > 0.1


def test_rows_that_teach_nothing_cost_nothing_and_change_nothing(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = GRPO(kl_coef=0.0)
    skipping = fit(tmp_path / "skip", policy, algorithm=rule)
    monkeypatch.setattr(GRPO, "active", lambda self, batch: torch.ones(len(batch)) > 0)
    everything = fit(tmp_path / "all", policy, algorithm=GRPO(kl_coef=0.0))
    assert torch.allclose(weights(skipping), weights(everything), atol=1e-7)


def test_a_group_without_differences_costs_nothing(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs: list[int] = []
    backward = Learner.backward

    def spy(self: Learner, *arguments: Any) -> Any:
        sums = backward(self, *arguments)
        costs.append(self.forward_tokens)
        return sums

    advantages = lambda self, batch: (batch.groups == 0).float()  # noqa: E731
    monkeypatch.setattr(Learner, "backward", spy)
    monkeypatch.setattr(GRPO, "advantages", advantages)
    trained = fit(tmp_path, policy, steps=1, algorithm=GRPO(kl_coef=0.0), updates=Updates(4))
    batch = Batch.from_rollouts(trained.train_rollouts, 0)
    first = batch[batch.groups == 0]
    assert costs == [len(pack(first.input_ids, first.loss_mask).ids)]


def test_an_iteration_without_differences_goes_on(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    backward = Learner.backward

    def spy(self: Learner, rows: Batch, *arguments: Any) -> Any:
        sizes.append(len(rows))
        return backward(self, rows, *arguments)

    monkeypatch.setattr(Learner, "backward", spy)
    trained = fit(tmp_path / "run", policy, env=env(ConstantReward()), algorithm=GRPO(kl_coef=0.0))
    assert sizes == [1, 1]
    assert torch.equal(weights(trained), weights(start(policy, tmp_path)))
    assert float(rows(tmp_path / "run")[0]["train/frac_zero_std"]) == 1.0
    assert trained.train_advantages == [0.0] * 8


def test_the_gradient_is_scaled_down(policy: Path, tmp_path: Path) -> None:
    limit = 1e-3
    trained = fit(tmp_path / "run", policy, steps=1, updates=Updates(4, max_grad_norm=limit))
    moved = weights(trained) - weights(start(policy, tmp_path))
    assert float(rows(tmp_path / "run")[0]["train/grad_norm"]) > limit
    assert float(moved.norm()) == pytest.approx(limit * LEARNING_RATE, rel=1e-2)


def test_the_scheduler_steps_with_the_optimizer(policy: Path, tmp_path: Path) -> None:
    halve = lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # noqa: E731
    fit(tmp_path, policy, steps=4, updates=Updates(4, num_minibatches=2), lr_scheduler=halve)
    rates = [float(row["train/lr"]) / LEARNING_RATE for row in rows(tmp_path)]
    assert rates == pytest.approx([(1 + 0.5) / 2, (0.25 + 0.125) / 2])


def test_frozen_embeddings_stay(policy: Path, tmp_path: Path) -> None:
    frozen = fit(tmp_path / "run", PolicyConfig(str(policy), freeze_embeddings=True))
    first = start(policy, tmp_path)
    embedding = "model.model.embed_tokens.weight"
    trained, initial = frozen.policy.state_dict(), first.policy.state_dict()
    assert torch.equal(trained[embedding], initial[embedding])
    assert not torch.equal(weights(frozen), weights(first))


def test_mixed_precision(policy: Path, tmp_path: Path) -> None:
    trained = module(policy)
    run = trainer(tmp_path / "run", precision="bf16-mixed", limit_val_batches=1)
    run.fit(trained, Data())
    exact = fit(tmp_path / "exact", policy)
    assert {p.dtype for p in trained.policy.parameters()} == {torch.float32}
    ours, theirs = weights(trained), weights(exact)
    assert not torch.equal(ours, theirs)
    assert float((ours - theirs).norm()) < 0.3 * LEARNING_RATE
    first = next(row for row in rows(tmp_path / "run") if "train/reward" in row)
    assert first["train/reward"] == rows(tmp_path / "exact")[0]["train/reward"]


def test_bfloat16_copies_of_float32_weights(policy: Path, tmp_path: Path) -> None:
    half = fit(tmp_path / "half", policy, updates=Updates(4, compute_dtype="bfloat16"))
    exact = fit(tmp_path / "exact", policy, updates=Updates(4))
    assert {p.dtype for p in half.policy.parameters()} == {torch.float32}
    assert not torch.equal(weights(half), weights(exact))
    assert float((weights(half) - weights(exact)).norm()) < 0.3 * LEARNING_RATE
    kl = float(rows(tmp_path / "half")[0]["train/kl"])
    assert kl == pytest.approx(0.0, abs=1e-6)  # the reference computes in bfloat16 too


# -- checkpoints


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2, dropout=0.1)])
def test_resumed_equals_uninterrupted(tmp_path: Path, lora: LoraConfig | None) -> None:
    config = PolicyConfig(str(checkpoint(tmp_path, attention_dropout=0.1)), lora=lora)
    settings: dict[str, Any] = {
        "updates": Updates(4, num_epochs=2, micro_batch_size=4),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        "lr_scheduler": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 10),
    }
    straight = fit(tmp_path / "straight", config, steps=8, **settings)
    half = str(tmp_path / "half.ckpt")
    fit(tmp_path / "half", config, steps=4, **settings).trainer.save_checkpoint(half)
    resumed = module(config, **settings)
    trainer(tmp_path / "resumed", 8, limit_val_batches=1).fit(resumed, Data(), ckpt_path=half)
    assert torch.equal(weights(resumed), weights(straight))
    expected = rows(tmp_path / "straight")[2:]
    found = [row for row in rows(tmp_path / "resumed") if "train/loss" in row]
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        timeless = [key for key in theirs if not key.startswith("time/")]
        assert [ours[key] for key in timeless] == [theirs[key] for key in timeless]


def test_a_checkpoint_holds_what_was_trained(tmp_path: Path, policy: Path) -> None:
    config = PolicyConfig(str(policy), lora=LoraConfig(r=2))
    trained = fit(tmp_path, config)
    assert trained.reference is not None
    trained.trainer.save_checkpoint(tmp_path / "lora.ckpt")
    saved = torch.load(tmp_path / "lora.ckpt", weights_only=True)
    assert saved["iteration"] == 2
    assert saved["state_dict"]
    assert all("lora_" in name for name in saved["state_dict"])
    whole = fit(tmp_path, policy)
    whole.trainer.save_checkpoint(tmp_path / "whole.ckpt")
    names = torch.load(tmp_path / "whole.ckpt", weights_only=True)["state_dict"]
    assert set(names) == {f"policy.{name}" for name in whole.policy.state_dict()}
    with pytest.raises(ValueError, match="must hold every trained weight"):
        trainer(tmp_path).fit(module(config), Data(), ckpt_path=str(tmp_path / "whole.ckpt"))


def test_a_module_can_be_fitted_again(policy: Path, tmp_path: Path) -> None:
    trained = fit(tmp_path / "first", policy, steps=1)
    first, before = trained.updater, weights(trained).clone()
    trainer(tmp_path / "second", 1, limit_val_batches=0).fit(trained, Data())
    assert trained.updater is not first, "its optimizer was the first trainer's"
    assert not torch.equal(weights(trained), before)


def test_a_resumed_run_may_have_larger_batches(policy: Path, tmp_path: Path) -> None:
    half = str(tmp_path / "half.ckpt")
    fit(tmp_path / "half", policy, steps=3).trainer.save_checkpoint(half)
    data = Data()
    data.batch_size = 8
    resumed = module(policy)
    trainer(tmp_path / "run", steps=5, limit_val_batches=0).fit(resumed, data, ckpt_path=half)
    assert resumed.iteration == 5
    assert len(resumed.train_rollouts) == 32


# -- logs


def test_a_row_holds_what_was_measured_then(policy: Path, tmp_path: Path) -> None:
    trained = module(policy)
    hops: list[set[str]] = []
    keep = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: hops.append(
            {f"train/f1_{r.question.metadata['hops']}hop" for r in trained.train_rollouts}
        )
    )
    trainer(tmp_path, steps=4, limit_val_batches=0, callbacks=[keep]).fit(trained, Data())
    found = [{k for k in row if k.startswith("train/f1_")} for row in rows(tmp_path)]
    assert found == hops
    assert len(set(map(frozenset, hops))) > 1


def test_log_every_n_steps(policy: Path, tmp_path: Path) -> None:
    trainer(tmp_path, steps=5, limit_val_batches=0, log_every_n_steps=2).fit(module(policy), Data())
    assert [row["step"] for row in rows(tmp_path)] == ["1", "3"]


def test_metrics_of_a_run(policy: Path, tmp_path: Path) -> None:
    trained = module(policy)
    run = trainer(tmp_path)
    run.fit(trained, Data())
    train = [row for row in rows(tmp_path) if "train/reward" in row]
    assert [row["step"] for row in train] == ["0", "1"]
    names = "reward f1 em format searches sampled_tokens response_tokens loss kl entropy grad_norm"
    expected = {f"train/{name}" for name in [*names.split(), "clip_frac", "frac_zero_std", "lr"]}
    expected |= {f"train/{name}" for name in MISMATCH}
    assert all(0 <= float(row["train/mismatch_mean"]) < 1e-4 for row in train)
    assert expected | {"time/rollout_s", "time/update_s"} <= set(train[0])
    assert any(name.startswith("train/f1_") for name in train[0])
    bar = run.progress_bar_metrics
    assert {"train/reward", "train/f1", "train/searches"} <= set(bar)
    assert len(trained.train_rollouts) == len(trained.train_advantages) == 8
    rewards = torch.tensor([rollout.reward.value for rollout in trained.train_rollouts])
    assert float(train[-1]["train/reward"]) == pytest.approx(float(rewards.mean()), rel=1e-5)
    centred = (rewards.view(2, 4) - rewards.view(2, 4).mean(1, keepdim=True)).flatten()
    assert (torch.tensor(trained.train_advantages) * centred >= 0).all()


def test_samples_of_a_question_differ_and_repeat(policy: Path, tmp_path: Path) -> None:
    first, second = (fit(tmp_path / name, policy, steps=1) for name in "ab")
    texts = [rollout.turns for rollout in first.train_rollouts]
    assert texts == [rollout.turns for rollout in second.train_rollouts]
    assert len({str(text) for text in texts[:4]}) > 1
