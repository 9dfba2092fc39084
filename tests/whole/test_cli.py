"""The command ``research`` from parsing to a resumed run and an exported model."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from doubles.tiny_run import write_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from research_rl.envs.synthetic.world import builtin_world
from research_rl.envs.system import commands as command_line
from research_rl.trainers.cli import dispatch as cli
from research_rl.trainers.cli import fit as lightning_cli
from research_rl.trainers.settings import errors as usage


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory in which ``research fit`` ran once."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["research", "fit", "--config", str(config)])
        cli.main()
    return folder


@pytest.fixture
def run(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that working directory, and in it."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


def research(monkeypatch: pytest.MonkeyPatch, *args: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["research", *map(str, args)])
    cli.main()


def fails(monkeypatch: pytest.MonkeyPatch, *args: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        research(monkeypatch, *args)
    assert stop.value.code == command_line.FAILED


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def state(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True)["state_dict"])


def test_fit_writes_a_run(trained: Path) -> None:
    root = trained / "runs" / "tiny"
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {p.name for p in root.iterdir()}
    assert {p.name for p in (root / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    rows = metrics(root)
    assert sum(bool(row["train/reward"]) for row in rows) == 2
    assert any(row["val/f1"] for row in rows)
    page = (root / "index.html").read_text("utf-8").replace("<wbr>", "")
    assert "finished, 2 of 2 iterations" in page
    assert "model.updates.group_size" in page, "it differs from the shipped config"
    assert "options that it does not name were not compared" not in page
    # nothing but the run itself lies in the working directory
    assert [p.name for p in trained.iterdir()] == ["runs"]


def test_resume_goes_on(run: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = metrics(run / "runs/tiny")
    last = ["--ckpt_path", "last"]
    research(monkeypatch, "fit", "--config", config, "--trainer.max_steps", 3, *last)
    after = metrics(run / "runs/tiny")
    assert [row["train/loss"] for row in after[: len(before)]] == [r["train/loss"] for r in before]
    assert sum(bool(row["train/reward"]) for row in after) == 3
    checkpoint = torch.load(run / "runs/tiny/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3


def test_resumed_equals_uninterrupted(
    run: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = ["fit", "--config", config, "--trainer.max_steps", 3]
    research(monkeypatch, *fit, "--ckpt_path", "last")
    research(monkeypatch, *fit, "--trainer.default_root_dir", "runs/whole")
    halves = state(run / "runs/tiny/checkpoints/last.ckpt")
    whole = state(run / "runs/whole/checkpoints/last.ckpt")
    assert halves.keys() == whole.keys()
    assert all(torch.equal(halves[name], whole[name]) for name in whole)


def test_a_resume_that_fails_costs_nothing(
    run: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "runs/tiny/metrics.csv").read_text()
    fit = ["fit", "--config", config, "--trainer.max_steps", 3, "--ckpt_path", "last"]
    fails(monkeypatch, *fit, "--data.val", "nowhere.jsonl")
    assert (run / "runs/tiny/metrics.csv").read_text() == before
    research(monkeypatch, *fit)
    assert [row["step"] for row in metrics(run / "runs/tiny") if row["train/reward"]] == list("012")


def test_last_without_a_checkpoint_starts_anew(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["--config", config, "--ckpt_path", "last", "--trainer.max_steps", 1]
    research(monkeypatch, "fit", *args)
    assert "nothing to resume" in caplog.text
    assert (tmp_path / "runs/tiny/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_looking_at_a_run_leaves_it_alone(
    command: str, run: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = run / "runs" / "tiny"
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    pages = ["--trainer.callbacks+=RolloutLog"]
    research(monkeypatch, command, "--config", config, "--ckpt_path", "best", *pages)
    assert {p: p.read_bytes() for p in before} == before
    assert (root / command / "config.yaml").is_file()
    learned = torch.load(root / "checkpoints/best.ckpt", weights_only=True)["iteration"]
    if command != "predict":
        name = f"{'val' if command == 'validate' else 'test'}_{learned:06d}.txt"
        shown = (root / command / "rollouts" / name).read_text()
        assert all(q.text in shown for q in builtin_world()[0][:6])
    if command == "predict":
        rows = (root / "predict/predictions.jsonl").read_text().splitlines()
        assert [json.loads(row)["id"] for row in rows] == [q.id for q in builtin_world()[0][:6]]
    else:
        prefix = "val" if command == "validate" else "test"
        assert float(metrics(root / command)[-1][f"{prefix}/f1"]) >= 0


def test_looking_twice_leaves_the_second_look(
    run: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("best", "last"):
        research(monkeypatch, "validate", "--config", config, "--ckpt_path", name)
    (row,) = metrics(run / "runs/tiny/validate")
    assert row["step"] == "2"


def test_export_is_a_hugging_face_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = run / "runs/tiny/checkpoints/last.ckpt"
    research(monkeypatch, "export", "--ckpt", checkpoint, "--out", "exported")
    model = AutoModelForCausalLM.from_pretrained(run / "exported")
    tokenizer = AutoTokenizer.from_pretrained(run / "exported")
    saved = state(checkpoint)
    weights = {f"policy.model.{name}": w for name, w in model.state_dict().items()}
    shared = saved.keys() & weights.keys()
    assert len(shared) >= len(list(model.parameters()))
    assert all(torch.equal(saved[name], weights[name]) for name in shared)
    assert tokenizer.eos_token_id is not None


def test_export_of_the_wrong_config_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "runs/tiny/checkpoints/last.ckpt"
    (run / "config.yaml").write_text("model: {}\n")
    fails(monkeypatch, "export", "--ckpt", checkpoint, "--out", "x", "--config", "config.yaml")
    assert "model.policy.model" in capsys.readouterr().err
    fails(monkeypatch, "export", "--ckpt", checkpoint, "--out", "runs")
    assert "must be an empty or a new folder" in capsys.readouterr().err
    fails(monkeypatch, "export", "--ckpt", "runs/tiny/nope.ckpt", "--out", "x")
    assert "nope.ckpt" in capsys.readouterr().err


def test_an_algorithm_from_the_working_directory(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rule.py").write_text(
        "from research_rl.trainers.algorithms import GRPO\n"
        "class Mine(GRPO):\n"
        "    calls = 0\n"
        "    def __init__(self, floor: float = 0.0) -> None:\n"
        "        super().__init__(); self.floor = floor\n"
        "    def advantages(self, batch):\n"
        "        Mine.calls += 1\n"
        "        return super().advantages(batch).clamp(min=self.floor)\n"
    )
    monkeypatch.chdir(tmp_path)
    chosen = ["--model.algorithm", "my_rule.Mine", "--model.algorithm.floor", 0.5]
    research(monkeypatch, "fit", "--config", config, *chosen, "--trainer.max_steps", 1)
    import my_rule  # type: ignore[import-not-found]

    assert my_rule.Mine.calls == 1


def test_the_engines_by_their_names(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["--config", config, "--trainer.max_steps", 1, "--model.engine", "ReferenceEngine"]
    research(monkeypatch, "fit", *args)
    assert "ReferenceEngine" in (tmp_path / "runs/tiny/config.yaml").read_text()


@pytest.mark.parametrize(
    ("settings", "bar"),
    [
        ({}, "RunProgressBar"),
        ({"callbacks": [{"class_path": "TQDMProgressBar"}]}, "TQDMProgressBar"),
        ({"enable_progress_bar": False}, "NoneType"),
    ],
)
def test_a_config_without_a_progress_bar_has_ours(
    settings: dict[str, Any],
    bar: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Built(lightning_cli.ResearchCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            """Run nothing."""

    monkeypatch.chdir(tmp_path)
    given = yaml.safe_load(config.read_text("utf-8"))
    del given["trainer"]["enable_progress_bar"]
    given["trainer"] |= settings
    Path("mine.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["research", "fit", "--config", "mine.yaml"])
    built = lightning_cli.run(cli=Built)
    assert type(built.trainer.progress_bar_callback).__name__ == bar


def test_print_config_is_a_config(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESEARCH_FIT__DATA__SEED", "41")
    with pytest.raises(SystemExit) as stop:
        research(monkeypatch, "fit", "--config", config, "--print_config")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "seed: 41" in printed
    (tmp_path / "again.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        research(monkeypatch, "fit", "--config", "again.yaml", "--print_config")
    assert capsys.readouterr().out == printed


def test_help_version_and_index(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    research(monkeypatch)
    overview = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "index", "export"):
        assert f"\n  {command} " in overview
    research(monkeypatch, "--version")
    assert capsys.readouterr().out.startswith("research-rl ")
    for command in ("index", "export"):
        with pytest.raises(SystemExit) as stop:
            research(monkeypatch, command, "--help")
        assert stop.value.code == 0
        assert f"research {command}" in capsys.readouterr().out


WITHOUT_TORCH = """
import sys
from research_rl.trainers.cli import main
for args, status in {given}:
    sys.argv[1:] = args.split()
    try:
        main()
    except SystemExit as stop:
        assert (stop.code or 0) == status, (args, stop.code)
    assert not {{'torch', 'pytorch_lightning', 'transformers'}} & set(sys.modules), args
"""


def test_help_and_usage_errors_wait_for_neither_torch_nor_lightning(tmp_path: Path) -> None:
    light = set(cli.COMMANDS)
    mistakes = ["plan", "plan --device abacus", "replay nope", "export --ckpt x", "serve-policy"]
    mistakes += ["page nope", "compare nope", "compare a b", "runs nope", "configs nope"]
    mistakes += ["env x", "schema x", "completion fish"]
    for command in ("fit", "validate", "test", "predict", "sft"):
        mistakes += [command, f"{command} --config quikstart", f"{command} --config quickstart --x"]
    mistakes += ["fit --config quickstart --data.seed", "evaluate --config none", "evaluate --x 1"]
    mistakes += ["sft --config small_cpu --model.updates.group_size x", "collect --out x"]
    mistakes += ["collect --out x --config quikstart", "plan --config quickstart --data.sed 1"]
    given = [("--help", 0), *((f"{command} --help", 0) for command in light)]
    given += [(mistake, command_line.FAILED) for mistake in mistakes]
    code = WITHOUT_TORCH.format(given=given)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(mistakes), said
    assert all(line.startswith("research: error: ") for line in said)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["fitt"], "did you mean fit?"),
        (["fit", "--config", "reserch_7b"], "did you mean research_7b?"),
        (["fit", "--config", "research_7b", "--model.algoritm", "GRPO"], "--model.algorithm?"),
        (["fit", "--config", "research_7b", "--model.seed", "x"], "model.seed: Expected a"),
        (["fit", "--config", "research_7b", "--model.engine", "CachdEngine"], "ReferenceEngine"),
        (["fit", "--config", "{model: {algoritm: 3}}"], "did you mean model.algorithm?"),
        (
            ["fit", "-c", "research_7b", "-c", "{trainer: {callbacks: [{class_path: Nope}]}}"],
            "trainer.callbacks: no class 'Nope'",
        ),
        (
            ["fit", "-c", "research_7b", "--model.algorithm.init_args.kl_cof", "1"],
            "GRPO has no option 'kl_cof'",
        ),
        (
            ["fit", "-c", "research_7b", "-c", "{model: {seed: '${nowhere}'}}"],
            "Interpolation key",
        ),
    ],
)
def test_a_mistake_is_one_line(
    args: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(monkeypatch, *args)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "Seed set" not in x]
    assert line.startswith("research: error: ")
    assert said in line


def test_a_broken_config_of_a_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "config.yaml").write_text("a: [1\nb: }")
    fails(monkeypatch, "ask", "--run", tmp_path, "Who ?")
    (line,) = capsys.readouterr().err.splitlines()
    assert f'in "{tmp_path / "config.yaml"}", line 2' in line


def test_a_bug_keeps_its_traceback_and_debug_shows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(args: list[str]) -> None:
        [].index(3) if args else {}["x"]

    monkeypatch.setattr("research_rl.envs.retrieval.cli.main", bug)
    with pytest.raises(KeyError):
        research(monkeypatch, "index")
    with pytest.raises(ValueError, match="is not in list"):
        research(monkeypatch, "index", "3")
    monkeypatch.setenv(usage.TRACEBACK, "")
    with pytest.raises(usage.UsageError):
        research(monkeypatch, "nope", "--debug")


def test_torch_threads(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    args = ["--config", config, "--trainer.max_steps", 1, "--torch_threads", 2]
    research(monkeypatch, "fit", *args)
    assert seen == [2]


def test_every_command_is_there_and_in_the_help() -> None:
    for name, module in cli.COMMANDS.items():
        assert callable(import_module(module).main), name
        assert f"\n  {name} " in cli.HELP
