"""A run is not overwritten by accident: saved configs move with their folder, fits refuse."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles.holder import HOLD
from doubles.tiny_run import write_config

from research_rl.envs.system import commands as command_line
from research_rl.trainers.checkpoint.run_folder import changes, run_in, with_references
from research_rl.trainers.cli import dispatch as cli
from research_rl.trainers.cli import start


def research(monkeypatch: pytest.MonkeyPatch, *args: Any) -> Any:
    monkeypatch.setattr(sys, "argv", ["research", *map(str, args)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def test_references_are_put_back_from_the_root() -> None:
    unresolved = "{a: {root: r, loggers: [{args: {dir: '${....root}/x'}}]}, seed: 1, b: '${.seed}'}"
    resolved = "{a: {root: r, loggers: [{args: {dir: r/x}}]}, seed: 1, b: 1}"
    restored = yaml.safe_load(with_references(resolved, unresolved))
    assert restored["a"]["loggers"][0]["args"]["dir"] == "${a.root}/x"
    assert restored["b"] == "${seed}"
    # those of another config are not
    assert with_references("{seed: 2, b: 1}", "{seed: 2, b: '${.seed}'}") == "{seed: 2, b: 1}"


def test_a_printed_config_moves_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    research(monkeypatch, "fit", "--config", "quickstart", "--print_config", "--overwrite")
    printed = capsys.readouterr().out
    config = yaml.safe_load(printed)
    assert config["data"]["world"]["folder"] == "${trainer.default_root_dir}/world"
    assert config["overwrite"] is False
    (tmp_path / "again.yaml").write_text(printed, encoding="utf-8")
    research(monkeypatch, "fit", "--config", "again.yaml", "--print_config")
    assert capsys.readouterr().out == printed


def test_a_folder_with_a_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs/quickstart"
    (root / "checkpoints").mkdir(parents=True)
    (root / "metrics.csv").write_text("step,train/reward,val/f1\n0,,0.5\n", encoding="utf-8")
    assert run_in(root) == ""  # no training step, nothing to lose
    (root / "metrics.csv").write_text("step,train/nll\n0,0.5\n", encoding="utf-8")
    assert run_in(root) == "metrics.csv with 1 training steps", "of research sft"
    (root / "checkpoints/last.ckpt").write_bytes(b"x")
    (root / "metrics.csv").write_text("step,train/reward\n0,0.5\n1,0.5\n", encoding="utf-8")
    assert run_in(root) == "metrics.csv with 2 training steps, checkpoints/last.ckpt"
    assert research(monkeypatch, "fit", "--config", "quickstart") == command_line.FAILED
    said = capsys.readouterr().err
    assert "--ckpt_path last" in said
    assert "--overwrite" in said
    assert sorted(p.name for p in root.iterdir()) == [".lock", "checkpoints", "metrics.csv"]


def test_two_fits_at_once_in_a_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    fit = ["fit", "--config", config, "--trainer.max_steps", 1, "--ckpt_path", "last"]
    root = tmp_path / "runs/tiny"
    with subprocess.Popen([sys.executable, "-c", HOLD, root], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            assert research(monkeypatch, *fit) == command_line.FAILED
            (line,) = [x for x in capsys.readouterr().err.splitlines() if "error" in x]
            assert "runs/tiny is held by another run" in line
            assert "wait until it has ended" in line
            assert "--trainer.default_root_dir" in line
            # the other processes of the run that holds it share the folder
            monkeypatch.setenv("NODE_RANK", "1")
            assert not start.leads()
            monkeypatch.delenv("NODE_RANK")
            monkeypatch.setattr(start.rank_zero_only, "rank", 1)
            assert not start.leads()
            monkeypatch.setattr(start.rank_zero_only, "rank", 0)
        finally:
            other.kill()
    for _ in range(2):  # after a kill, and after a run that has ended in this process
        monkeypatch.setattr(sys, "argv", ["research", *map(str, fit)])
        cli.main()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--config", "empty.yaml"], "empty.yaml must hold sections"),
        (["--config", "bad.yaml"], "bad.yaml must be YAML"),
        ([], "research fit --config quickstart"),
        (["--config", "quickstart", "--data.world", "null"], "refers to data.world.num_people"),
        (
            ["--config", "quickstart", "--trainer.gradient_clip_val", "1"],
            "set model.updates.max_grad_norm",
        ),
    ],
)
def test_a_mistake_says_what_to_do(
    args: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "bad.yaml").write_text("a: [1\nb: }")
    assert research(monkeypatch, "fit", *args) == command_line.FAILED
    assert said in capsys.readouterr().err


def test_an_environment_variable_that_loses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESEARCH_TEST__DATA__BATCH_SIZE", "8")
    research(monkeypatch, "test", "--config", "quickstart")  # there is no world here
    assert "RESEARCH_TEST__DATA__BATCH_SIZE has no effect" in caplog.text
    assert not (tmp_path / "runs/quickstart/world").exists()
    assert not (tmp_path / "runs/quickstart/warmstart").exists()


def test_what_a_run_goes_on_with_otherwise_is_found() -> None:
    before = "{trainer: {max_steps: 5}, data: {seed: '${s}'}, s: 1, model: {algorithm: A}}"
    now = "{trainer: {max_steps: 9}, data: {seed: 1}, s: 1, model: {algorithm: B, lr: 2}}"
    assert changes(before, before) == []
    # a reference is what it refers to, and a longer run is fine
    assert changes(before, now) == ["model.algorithm: A -> B", "model.lr: None -> 2"]


def test_what_the_checkpoint_keeps_of_a_changed_option_is_said() -> None:
    before = (
        "{model: {policy: {model: a, lora: {r: 4}}, algorithm: {init_args: {kl_coef: 1, "
        "kl_control: {target: 2}}}, optimizer: {init_args: {lr: 1}}}, data: {train: x, val: x}}"
    )
    now = (
        "{model: {policy: {model: b, lora: {r: 4}}, algorithm: {init_args: {kl_coef: 2, "
        "kl_control: {target: 2}}}, optimizer: {init_args: {lr: 2}}}, data: {train: y, val: y}}"
    )
    assert changes(before, now) == [
        "model.policy.model: a -> b (the adapter is the checkpoint's; below it must be the weights "
        "it learned on)",
        "model.algorithm.init_args.kl_coef: 1 -> 2 (times what kl_control has made of it so far)",
        "data.train: x -> y (the run goes on behind the questions that it has asked)",
        "data.val: x -> y (a best score of another exam is forgotten, if the checkpoint says its "
        "exam)",
    ]


def test_a_new_learning_rate_on_the_command_line_is_the_one_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config", write_config(tmp_path), "--ckpt_path", "last"]
    new = ["--trainer.max_steps", "3", "--model.optimizer.init_args.lr", "1e-6"]
    for extra in ([], new):
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["research", *map(str, [*fit, *extra])])
        cli.main()
    said = [m for m in caplog.messages if "goes on with" in m]
    assert len(said) == 1, said
    assert "lr: 0.001 -> 1e-06" in said[0]
    with Path("runs/tiny/metrics.csv").open(newline="") as file:
        rates = [row["train/lr"] for row in csv.DictReader(file) if row["train/lr"]]
    assert [float(rate) for rate in rates] == pytest.approx([1e-3, 1e-3, 1e-6])


def test_last_goes_on_from_what_is_there_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config", write_config(tmp_path), "--ckpt_path", "last"]
    monkeypatch.setattr(sys, "argv", ["research", *map(str, fit)])
    cli.main()
    root = Path("runs/tiny")
    (root / "checkpoints/last.ckpt").unlink()  # as a kill behind best.ckpt leaves it
    before = (root / "metrics.csv").read_text("utf-8")
    elsewhere = ["--trainer.callbacks.dirpath", "elsewhere"]
    assert research(monkeypatch, *fit, *elsewhere) == command_line.FAILED
    assert "--overwrite" in capsys.readouterr().err
    assert (root / "metrics.csv").read_text("utf-8") == before
    assert [p.name for p in (root / "checkpoints").iterdir()] == ["best.ckpt"]
    monkeypatch.setattr(sys, "argv", ["research", *map(str, fit), "--trainer.max_steps", "3"])
    cli.main()
    with (root / "metrics.csv").open(newline="") as file:
        trained = [row["step"] for row in csv.DictReader(file) if row["train/reward"]]
    assert len(trained) == len(set(trained)) == 3


def test_a_run_without_its_config_says_that_nothing_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config", write_config(tmp_path), "--ckpt_path", "last"]
    for extra in ([], ["--trainer.max_steps", "3"]):
        monkeypatch.setattr(sys, "argv", ["research", *map(str, [*fit, *extra])])
        cli.main()
        Path("runs/tiny/config.yaml").unlink()
    assert "runs/tiny/config.yaml cannot be compared" in caplog.text


def test_a_run_that_goes_on_with_another_algorithm_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config", write_config(tmp_path), "--ckpt_path", "last"]
    for extra in ([], ["--trainer.max_steps", "2"], ["--model.algorithm", "RLOO"]):
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["research", *map(str, [*fit, *extra])])
        cli.main()
        told = "model.algorithm.class_path" in caplog.text
        assert told is ("RLOO" in extra), caplog.text


def test_a_policy_that_is_asked_otherwise_than_it_was_trained_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    config = ["--config", write_config(tmp_path)]
    asked = ["validate", *config, "--ckpt_path", "last"]
    otherwise = [*asked, "--model.env.max_searches", "2", "--model.updates.group_size", "7"]
    for command, told in ((["fit", *config], 0), (asked, 0), (otherwise, 1)):
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["research", *map(str, command)])
        cli.main()
        said = [line for line in caplog.messages if "asked otherwise than it was trained" in line]
        assert len(said) == told, caplog.text
        assert all("model.env.max_searches: " in line and "-> 2" in line for line in said)


@pytest.mark.parametrize("name", ["env.max_chars", "sampling.stop"])
def test_what_a_policy_s_turns_are_cut_by_is_told_too(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    section, _, option = name.partition(".")
    before, now = ({"model": {section: {option: value}}} for value in (7, 9))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before), encoding="utf-8")
    checkpoint = str(tmp_path / "checkpoints" / "last.ckpt")
    start.warn_of_changes(tmp_path, checkpoint, yaml.safe_dump(now), goes_on=False)
    assert f"asked otherwise than it was trained: model.{name}" in caplog.text


def test_a_former_config_that_cannot_be_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("a: [1\nb: }", encoding="utf-8")
    start.warn_of_changes(tmp_path, str(tmp_path / "checkpoints" / "last.ckpt"), "model: {}")
    assert f"{file} cannot be compared with this run's options" in caplog.text
