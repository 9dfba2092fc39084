"""From questions to demonstrations to an imitating policy, by the commands alone."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from doubles.page_commands import parse
from doubles.tiny_run import write_config

from research_rl.trainers.cli import main
from research_rl.trainers.data import WorldConfig

QUESTIONS = [
    {
        "id": "bridge",
        "question": "What position was held by the woman who starred in Kiss and Tell?",
        "golden_answers": ["Chief of Protocol"],
        "metadata": {"supporting_titles": ["Shirley Temple", "Kiss and Tell (1945 film)"]},
    },
    {
        "id": "compared",
        "question": "Are Bruges and Ghent both in Belgium?",
        "golden_answers": ["yes"],
        "metadata": {"supporting_titles": ["Ghent", "Bruges"]},
    },
    {"id": "bare", "question": "Who is it?", "golden_answers": ["x"]},
]


def research(monkeypatch: pytest.MonkeyPatch, *args: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["research", *map(str, args)])
    main()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of seconds whose index finds four pages, in a folder of its own."""
    file = write_config(tmp_path)
    settings = yaml.safe_load(file.read_text())
    settings["model"]["env"] = {"index": {"class_path": "doubles.titles.Titles"}, "top_k": 1}
    file.write_text(yaml.safe_dump(settings))
    rows = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (tmp_path / "gold.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    return file


def test_gold_evidence_is_collected_and_imitated(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collect = ["collect", "--config", config, "--questions", "gold.jsonl", "--out", "demos"]
    research(monkeypatch, *collect)
    assert "2 demonstrations of 2 questions; 3 of 3 questions were asked" in capsys.readouterr().out
    before = Path("demos/rollouts.jsonl").read_bytes()
    research(monkeypatch, *collect)  # nothing is left to do
    assert Path("demos/rollouts.jsonl").read_bytes() == before

    sft = ["sft", "--config", config, "--data.train", "demos/rollouts.jsonl"]
    sft += ["--trainer.default_root_dir", "runs/sft", "--trainer.max_steps", 4]
    research(monkeypatch, *sft)
    with Path("runs/sft/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/nll"]) for row in rows if row.get("train/nll")]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert any(row.get("val/f1") for row in rows)
    assert not any(row.get("train/mismatch_mean") for row in rows), "nobody sampled these"
    whole = torch.load("runs/sft/checkpoints/last.ckpt", weights_only=True)["state_dict"]

    halves = [*sft[:-1], 2, "--trainer.default_root_dir", "runs/halves"]
    research(monkeypatch, *halves)
    research(monkeypatch, *halves, "--trainer.max_steps", 4, "--ckpt_path", "last")
    state = torch.load("runs/halves/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], whole[name]) for name in whole)


def test_a_policy_s_own_rollouts_are_collected_with_their_ids(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    research(
        monkeypatch,
        *("collect", "--config", config, "--from", "policy", "--questions", "gold.jsonl"),
        *("--out", "own", "--samples", 2, "--min_reward", 0),
    )
    card = json.loads(Path("own/card.json").read_text())
    assert card["asked"] == 3
    assert card["demonstrations"] + sum(card["thrown_away"].values()) == 6


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    """What a folder says that it was begun with otherwise."""
    with pytest.raises(SystemExit):
        research(monkeypatch, *args)
    said = capsys.readouterr().err
    assert "begun with other settings (" in said, said
    return said.partition("other settings (")[2].partition(")")[0]


def test_a_folder_is_known_by_what_its_files_hold(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompt.txt").write_text("A: {prompt}")
    asked, prompt = Path("gold.jsonl"), ("--model.env.prompt", "prompt.txt")
    collect = ["collect", "--config", config, "--data.train", asked, *prompt, "--out"]
    collect += ["demos"]
    research(monkeypatch, *collect)
    assert refused(monkeypatch, capsys, *collect, "--data.limit_train", 2) == "questions_content"
    Path("prompt.txt").write_text("Q: {prompt}")
    assert refused(monkeypatch, capsys, *collect) == "prompt_content"
    Path("prompt.txt").write_text("A: {prompt}")
    whole = asked.read_text()
    for before, after in (("Who is it?", "Who was it?"), ("Shirley Temple", "Ghent")):
        asked.write_text(whole.replace(before, after))
        assert refused(monkeypatch, capsys, *collect) == "questions_content"
    asked.write_text(whole)

    settings = Path("demos/settings.json")
    told = json.loads(settings.read_text())
    older = {k: v for k, v in told.items() if not k.endswith("_content")}
    settings.write_text(json.dumps(older))
    research(monkeypatch, *collect)
    assert json.loads(settings.read_text()) == told


def test_a_policy_is_known_by_its_seed_and_weights(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collect = ["collect", "--config", config, "--from", "policy", "--out", "own", "--limit", 1]
    research(monkeypatch, *collect)
    assert refused(monkeypatch, capsys, *collect, "--model.seed", 8) == "seed"
    (weights,) = (config.parent / "policy").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\7")
    assert refused(monkeypatch, capsys, *collect) == "policy_content"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["collect", "--out", "x"], "collect must have a config"),
        (["sft", "--data.train", "nowhere.jsonl"], "there is no rollout file nowhere.jsonl"),
        (["collect", "--from", "served", "--out", "x", "--questions", "gold.jsonl"], "--url"),
    ],
)
def test_a_mistake_is_one_line(
    args: list[str],
    said: str,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configured = [] if "must have a config" in said else ["--config", str(config)]
    given = [args[0], *configured, *args[1:]]
    with pytest.raises(SystemExit) as stop:
        research(monkeypatch, *given)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert said in lines[-1]


def test_the_world_that_is_asked_about_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"num_people": 60, "num_train": 12, "num_val": 6, "num_test": 6}
    WorldConfig(folder="world", **sizes).write()
    world = [f"--data.world.{name}={value}" for name, value in sizes.items()]
    asked = ["collect", "--config", "quickstart", "--data.world.folder", "world", *world]
    other = [*asked, "--data.world.seed", "7", "--from", "gold", "--out", "demos"]
    with pytest.raises(SystemExit):
        research(monkeypatch, *other)
    assert (
        "data.world must have the settings that world was written with" in capsys.readouterr().err
    )
    assert not Path("demos/rollouts.jsonl").exists()


@pytest.mark.parametrize("rule", ["dapo", "igpo", "ppo"])
@pytest.mark.parametrize("name", ["quickstart", "small", "small_cpu", "research_7b"])
def test_imitation_takes_every_config_of_a_fit(name: str, rule: str) -> None:
    """A learning rule in it is not used, and its options are held to what the rule has."""
    parse(["sft", "--config", name, "--config", f"algorithm/{rule}"])
