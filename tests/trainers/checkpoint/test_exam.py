"""A best score of another exam is forgotten when a run goes on, and early rewards are with it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from doubles.tiny_run import write_config

from research_rl.trainers.checkpoint.exam import _VAL, _exam, differences, exam_of, reward_of
from research_rl.trainers.checkpoint.run_folder import changes
from research_rl.trainers.cli import dispatch as cli
from research_rl.trainers.cli import fit
from research_rl.trainers.data import SPLITS
from research_rl.trainers.health.guard import CollapseGuard


class Built(fit.ResearchCLI):
    """Everything is built, and nothing is run."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny"))


def exam(monkeypatch: pytest.MonkeyPatch, config: Path, *options: Any) -> Any:
    words = ["research", "fit", "-c", config, "--overwrite", *options]
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    return exam_of(fit.run(cli=Built).trainer)


def test_only_what_decides_a_validation_is_of_the_exam(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = exam(monkeypatch, tiny)
    for options in (
        ["--model.updates.group_size", "4", "--data.batch_size", "3"],
        ["--model.sampling.temperature", "0.7"],
        ["--trainer.default_root_dir", "elsewhere"],
        ["--data.val", shutil.copy(tiny.parent / "questions.jsonl", tmp_path / "copy.jsonl")],
        ["--model.env.index", "RemoteRetriever", "--model.env.index.url", "http://here:8000"],
    ):
        assert differences(usual, exam(monkeypatch, tiny, *options)) == [], options
    (tmp_path / "easy.jsonl").write_text(json.dumps({"question": "a", "golden_answers": ["b"]}))
    for name, value in (
        ("data.val", "easy.jsonl"),
        ("data.limit_val", 2),
        ("trainer.limit_val_batches", 1),
        ("model.env.top_k", 2),
        ("model.env.max_searches", 1),
        ("model.env.reward", "em"),
        ("model.env.prompt", "instruct"),
    ):
        now = exam(monkeypatch, tiny, f"--{name}", value)
        assert differences(usual, now) == [name]
    longer = exam(monkeypatch, tiny, "--model.sampling.max_response_tokens", 20)
    assert differences(usual, longer) == ["model.validation_sampling.max_response_tokens"]


def test_a_run_without_a_word_of_its_exam_keeps_its_best() -> None:
    assert differences(None, {"a": "1"}) == differences({"a": "1"}, None) == []
    # an option of a later version is no other exam
    assert differences({"a": "1"}, {"a": "1", "b": "2"}) == []


def test_questions_of_a_folder_are_known_by_the_file_that_is_asked(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "dev.jsonl").write_text("easy")
        (tmp_path / place / "train.jsonl").write_text(place)

    def told(source: Path | str) -> str:
        return _exam({"data": {"val": str(source)}}, tmp_path / "run")["data.val"]

    here, there = tmp_path / "here", tmp_path / "there"
    assert told(here) == told(there) == told(f"{here}#dev")
    assert told(f"{here / 'dev.jsonl'}#dev") != told(f"{here / 'dev.jsonl'}#test")
    (there / "dev.jsonl").write_text("hard")
    assert told(here) != told(there)
    assert set(_VAL) == set(SPLITS["val"])


def test_what_moves_no_f1_leaves_the_best_f1(tmp_path: Path) -> None:
    def of(**env: Any) -> dict[str, str]:
        return _exam({"model": {"env": env}}, tmp_path)

    free, dear = of(search_cost=0.0), of(search_cost=0.1)
    assert differences(free, dear, "val/f1") == []
    assert differences(free, dear, "val/reward") == ["model.env.search_cost"]
    terms = [of(reward={"terms": {"answer": weight}}) for weight in (0.5, 1.0)]
    assert differences(*terms, "val/f1") == []
    assert differences(terms[0], of(reward="paper"), "val/f1") == ["model.env.reward"]


def test_an_open_gate_is_no_rule_yet() -> None:
    guard = CollapseGuard(early=5, patience=1)
    likely = {"health/right_logprob": -0.1, "train/reward": 0.5}
    for _ in range(5):
        assert guard.judge(likely) == {}
    guard._forget_rewards()
    unlikely = {**likely, "health/right_logprob": -9.0}
    for _ in range(5):
        guard.judge(unlikely)
    assert guard.judge(unlikely) != {}, "the reward has a history again, and the gate is told"
    assert guard.judge({**unlikely, "train/reward": 0.4}) == {}, (
        "it has fallen, which is another rule"
    )


def test_a_changed_line_says_what_becomes_of_the_best() -> None:
    before = "{model: {sampling: {top_p: 1, temperature: 1}, env: {top_k: 1, index: a}}}"
    now = "{model: {sampling: {top_p: 2, temperature: 2}, env: {top_k: 2, index: b}}}"
    told = {line.split(":")[0]: "another exam" in line for line in changes(before, now)}
    assert told == {
        "model.sampling.top_p": True,
        "model.sampling.temperature": False,
        "model.env.top_k": True,
        "model.env.index": False,
    }


def state(file: str = "last.ckpt") -> Any:
    saved = torch.load(Path("runs/tiny/checkpoints") / file, weights_only=True)
    (one,) = (s for k, s in saved["callbacks"].items() if k.startswith("RunCheckpoint"))
    return saved["global_step"], one


def test_another_exam_has_no_best_yet(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(tiny.read_text("utf-8"))
    config["trainer"]["callbacks"] += [
        {"class_path": n} for n in ("HealthMonitor", "CollapseGuard")
    ]
    Path("mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run = ["research", "fit", "--config", "mine.yaml", "--ckpt_path", "last"]
    monkeypatch.setattr(sys, "argv", run)
    cli.main()
    path = Path("runs/tiny/checkpoints/last.ckpt")
    saved = torch.load(path, weights_only=True)
    for one in saved["callbacks"].values():
        if "best_model_score" in one:  # as if the questions had been easy, and long ago
            one["best_model_score"] = one["kth_value"] = torch.tensor(0.9)
            one["best_k_models"] = dict.fromkeys(one["best_k_models"], torch.tensor(0.9))
        elif "history" in one:
            one["history"]["train/reward"] = [0.9, 0.9]
    torch.save(saved, path)
    best = torch.load(path.with_name("best.ckpt"), weights_only=True)["global_step"]

    monkeypatch.setattr(sys, "argv", [*run, "--trainer.max_steps", "3"])
    cli.main()
    assert "forgotten" not in caplog.text
    assert float(state()[1]["best_model_score"]) == pytest.approx(0.9)
    assert state("best.ckpt")[0] == best

    otherwise = ["--trainer.max_steps", "4", "--model.env.reward", "em"]
    monkeypatch.setattr(sys, "argv", [*run, *otherwise])
    cli.main()
    assert "the best val/f1 so far, 0.9, is forgotten" in caplog.text
    assert "early values of train/reward are forgotten" in caplog.text
    assert float(state()[1]["best_model_score"]) < 0.9
    assert state("best.ckpt")[0] == 4


def test_who_asks_a_policy_hears_of_what_it_was_trained_with() -> None:
    before, now = "model: {env: {max_searches: 4}}", "model: {env: {max_searches: 2, protocol: o2}}"
    assert changes(before, now, goes_on=False) == ["model.env.max_searches: 4 -> 2"]
    assert len(changes(before, now)) == 2


def test_a_guard_forgets_rewards_and_nothing_else() -> None:
    former = CollapseGuard()
    for _ in range(3):
        former.judge({"train/reward": 1.0, "train/format": 1.0})
    saved = former.state_dict() | {"reward": {"model.env.reward": "1"}}
    for reward, kept in (("1", {"train/reward", "train/format"}), ("2", {"train/format"})):
        guard = CollapseGuard()
        guard._reward = {"model.env.reward": reward}
        guard.load_state_dict(saved)
        assert set(guard._history) == kept
    del saved["reward"]  # of an older version
    guard.load_state_dict(saved)
    assert set(guard._history) == {"train/reward", "train/format"}


def test_rewards_are_made_with_less_than_the_exam(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["research", "fit", "-c", str(tiny)])
    found = reward_of(fit.run(cli=Built).trainer)
    assert found is not None
    assert sorted(found) == ["model.env.reward", "model.env.search_cost"]
