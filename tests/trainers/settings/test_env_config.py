"""The environment's section of a config, as the command line and YAML files write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from research_rl.trainers.settings import EnvConfig, find_config


def parsed(*args: str) -> EnvConfig:
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--env", type=EnvConfig, default=EnvConfig())
    made: Any = parser.instantiate(parser.parse_args(list(args)))
    assert isinstance(made.env, EnvConfig)
    return made.env


def prompt_of(config: EnvConfig) -> Any:
    return config.make().unwrapped.prompt  # type: ignore[attr-defined]


TEXTS = [
    "Question: {prompt}\n",
    "{prompt}",
    "user: {prompt}",
    "{system: {prompt}}",
    "- {prompt}",
    "# {prompt}",
    "[{prompt}]",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_a_text_also_if_it_reads_as_yaml(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"env": {"prompt": text}}))

    for config in (parsed("--env.prompt", text), parsed("--config", str(file))):
        prompt = prompt_of(config)
        assert prompt.user == text
        assert not prompt.chat


def test_a_chat_is_messages(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    chat = {"system": "Search first.", "user": "Q: {prompt}"}
    file.write_text(yaml.safe_dump({"env": {"prompt": chat}}))

    prompt = prompt_of(parsed("--config", str(file)))

    assert (prompt.system, prompt.user, prompt.chat) == (*chat.values(), True)
    assert prompt_of(parsed("--env.prompt", "{user: 'Q {prompt}'}")).chat


def test_what_the_documents_are_about_is_told() -> None:
    chat = prompt_of(parsed("--env.prompt.about", "papers on batteries"))
    text = prompt_of(parsed("--env.prompt", "{about: papers on batteries, chat: false}"))

    assert "over papers on batteries." in chat.system
    assert text.system is None
    assert "over papers on batteries." in text.user


def test_the_prompt_of_small_cpu_is_its_text() -> None:
    shipped = yaml.safe_load(Path(find_config("small_cpu")).read_text(encoding="utf-8"))

    config = parsed("--env.prompt", shipped["model"]["env"]["prompt"])

    assert prompt_of(config).user == "Question: {prompt}\n"
