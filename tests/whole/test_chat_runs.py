"""A chat prompt and a chat template from YAML to the run's folder, its export and its replay."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles.tiny_run import write_config
from transformers import AutoTokenizer

from research_rl.agents.policy.loading import load_tokenizer
from research_rl.trainers.checkpoint.export import policy_config
from research_rl.trainers.cli import dispatch as cli

TEMPLATE = (
    "{% if strftime_now('%Y') == '2019' %}<think> {% endif %}"
    "{% for m in messages %}{{ m.content }} {% endfor %}"
    "{% if not (enable_thinking | default(true)) %}<think> </think>{% endif %}"
)


def research(monkeypatch: pytest.MonkeyPatch, *args: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["research", *map(str, args)])
    cli.main()


def chat_config(folder: Path) -> Path:
    """The tiny run's config with a chat prompt, a template of its own and arguments for it."""
    file = write_config(folder)
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    (folder / "own.jinja").write_text(TEMPLATE, encoding="utf-8")
    config["model"]["env"] = {"prompt": {"user": "Question : {prompt}"}}
    config["model"]["policy"]["chat_template"] = {
        "file": str(folder / "own.jinja"),
        "kwargs": {"enable_thinking": False},
    }
    config["trainer"]["callbacks"] += [{"class_path": "FlightRecorder"}]
    config["trainer"]["max_steps"] = 1
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def test_what_a_run_began_with_is_what_goes_on_and_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = chat_config(tmp_path)
    research(monkeypatch, "fit", "--config", config)
    run = tmp_path / "runs" / "tiny"
    kept = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["model"]
    assert kept["policy"]["chat_template"]["date"] == date.today().isoformat()
    said = {name: part for name, part in kept["env"]["prompt"].items() if part is not None}
    assert said == {"user": "Question : {prompt}"}

    research(monkeypatch, "replay", run, "--iteration", 0)

    # as if it had begun in another year
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace(date.today().isoformat(), "2019-03-04"))
    last = ["--ckpt_path", "last", "--trainer.max_steps", 2]
    research(monkeypatch, "fit", "--config", config, *last)
    template = policy_config(run / "config.yaml", run).chat_template
    assert (template.date, template.kwargs) == ("2019-03-04", {"enable_thinking": False})
    with pytest.raises(SystemExit):  # another prompt than that year's
        research(monkeypatch, "replay", run, "--iteration", 0)

    checkpoint = run / "checkpoints" / "last.ckpt"
    research(monkeypatch, "export", "--ckpt", checkpoint, "--out", "exported")
    read: Any = AutoTokenizer.from_pretrained("exported")
    messages = [{"role": "user", "content": "Who?"}]
    assert read.apply_chat_template(messages, tokenize=False) == "<think> Who? <think> </think>"
    own: Any = load_tokenizer(policy_config(run / "config.yaml", run))
    assert own.chat_template == read.chat_template


def test_a_prompt_on_the_command_line_is_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    one = ["--trainer.max_steps", 1, "--trainer.limit_val_batches", 0]
    research(monkeypatch, "fit", "--config", config, "--model.env.prompt", "{prompt}", *one)
    kept = yaml.safe_load((tmp_path / "runs/tiny/config.yaml").read_text(encoding="utf-8"))
    assert kept["model"]["env"]["prompt"] == "{prompt}"


def test_a_date_need_not_be_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    text = config.read_text(encoding="utf-8")
    dated = text.replace("  policy:\n", "  policy:\n    chat_template: {date: 2020-01-02}\n")
    assert dated != text
    config.write_text(dated, encoding="utf-8")
    one = ["--trainer.max_steps", 1, "--trainer.limit_val_batches", 0]
    research(monkeypatch, "fit", "--config", config, *one)
    file = tmp_path / "runs/tiny/config.yaml"
    assert policy_config(file).chat_template.date == "2020-01-02"
