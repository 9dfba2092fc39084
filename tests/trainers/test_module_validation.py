"""Validation, test and prediction of a module: when they run, what they ask and what they tell."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from doubles.training import Data, LengthReward, fit, module, questions, rows, trainer, weights

from research_rl.agents.types import SamplingParams
from research_rl.envs.retrieval import build_index
from research_rl.trainers.audit.command import main as audit
from research_rl.trainers.data import QuestionDataModule
from research_rl.trainers.settings.options import EnvConfig, ValidationSampling


def json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_validation_comes_before_the_first_update_and_only_then(
    policy: Path, tmp_path: Path
) -> None:
    trained = module(policy)
    trainer(tmp_path / "run", val_check_interval=2).fit(trained, Data())
    steps = [row["step"] for row in rows(tmp_path / "run") if "val/f1" in row]
    assert steps == ["0", "2"]
    trained.trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = module(policy)
    run = trainer(tmp_path / "resumed", steps=4, val_check_interval=2)
    run.fit(resumed, Data(), ckpt_path=str(tmp_path / "last.ckpt"))
    steps = [row["step"] for row in rows(tmp_path / "resumed") if "val/f1" in row]
    assert steps == ["4"]


def test_a_module_that_was_validated_can_be_trained(policy: Path, tmp_path: Path) -> None:
    looked_at = module(policy)
    trainer(tmp_path / "look").validate(looked_at, Data(), verbose=False)
    assert looked_at.reference is None
    trainer(tmp_path / "run", limit_val_batches=0).fit(looked_at, Data())
    assert torch.equal(weights(looked_at), weights(fit(tmp_path / "straight", policy)))


def test_validate_needs_questions(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.val must name a question file, got none"):
        trainer(tmp_path).validate(module(policy), QuestionDataModule())


def test_a_limited_validation_asks_the_same_questions(policy: Path, tmp_path: Path) -> None:
    asked: list[list[str]] = []
    trained = module(policy)
    keep = pl.callbacks.LambdaCallback(
        on_validation_end=lambda *_: asked.append([r.question.id for r in trained.val_rollouts])
    )
    trainer(tmp_path, limit_val_batches=1, callbacks=[keep]).fit(trained, Data())
    assert asked == [[q.id for q in questions()[:3]]] * 3


def test_validation_needs_no_questions(policy: Path, tmp_path: Path) -> None:
    data = Data()
    data.val_dataloader = lambda: []  # type: ignore[method-assign,assignment,return-value]
    trainer(tmp_path).fit(module(policy), data)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1"]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_every_question_weighs_the_same(policy: Path, tmp_path: Path, size: int) -> None:
    fresh = module(policy)
    found = trainer(tmp_path).validate(fresh, Data(size), verbose=False)[0]
    assert len(fresh.val_rollouts) == 8
    mean = sum(r.reward.value for r in fresh.val_rollouts) / 8
    assert found["val/reward"] == pytest.approx(mean)
    hops = [r.question.metadata["hops"] for r in fresh.val_rollouts]
    assert {f"val/f1_{h}hop" for h in hops} <= set(found)
    assert {"val/em", "val/format", "val/searches", "val/sampled_tokens", "val/chain"} <= set(found)


def test_the_ceiling_of_an_audit_stands_beside_em(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    pages = [{"id": q.id, "contents": f"{q.id}\n{q.answers[0]}"} for q in questions()[:6]]
    json_lines(tmp_path / "c.jsonl", pages)
    index = str(build_index(tmp_path / "c.jsonl", tmp_path / "index", kind="bm25"))
    rows = [
        {"id": q.id, "question": q.text, "answers": list(q.answers), "metadata": q.metadata}
        for q in questions()
    ]
    file = str(json_lines(tmp_path / "dev.jsonl", rows))
    data = QuestionDataModule(val=file, test=file, val_batch_size=3)
    fresh = module(policy, env=EnvConfig(index=index, reward=LengthReward(), top_k=1))
    before = trainer(tmp_path).validate(fresh, data, verbose=False)[0]
    assert not [name for name in before if "ceiling" in name]
    audit(["audit", "--questions", file, "--index", index])
    answered = {p["contents"].partition("\n")[2] for p in pages}
    for role in ("validate", "test"):
        data = QuestionDataModule(val=file, test=file, val_batch_size=3, limit_test=4)
        found = getattr(trainer(tmp_path), role)(fresh, data, verbose=False)[0]
        asked = questions()[: 4 if role == "test" else 8]
        share = sum(q.answers[0] in answered for q in asked) / len(asked)
        assert found[f"{'val' if role == 'validate' else role}/em_ceiling"] == pytest.approx(share)


def test_validation_is_greedy_unless_told_otherwise(policy: Path) -> None:
    assert module(policy).validation_sampling.temperature == 0.0
    sampling = SamplingParams(max_response_tokens=24, max_result_tokens=9)
    found = module(policy, sampling=sampling, validation_sampling=ValidationSampling(top_k=7))
    assert found.validation_sampling == replace(sampling, temperature=0.0, top_k=7)
    hot = ValidationSampling(temperature=0.7)
    assert module(policy, validation_sampling=hot).validation_sampling.temperature == 0.7
    names = [{f.name for f in fields(kind)} for kind in (SamplingParams, ValidationSampling)]
    assert names[0] == names[1]


def test_test_and_predict(policy: Path, tmp_path: Path) -> None:
    fresh = module(policy)
    found = trainer(tmp_path).test(fresh, Data(), verbose=False)[0]
    assert found["test/reward"] >= 0
    batches: Any = trainer(tmp_path).predict(fresh, Data())
    predicted = [row for batch in batches for row in batch]
    assert [row["id"] for row in predicted] == [question.id for question in questions()]
    assert predicted[0]["text"] == "".join(
        text for pair in _turns(fresh.test_rollouts[0]) for text in pair
    )
    assert fresh.reference is None


def _turns(rollout: Any) -> list[tuple[str, str]]:
    return list(zip(rollout.turns, [*rollout.results, ""], strict=True))
