"""Every config of a method that ships makes its agent, and says what the class says by itself."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles.places import ROOT
from doubles.served_model import Scripted
from doubles.toy_retriever import Ranked

import research_rl.agents
from research_rl.agents import Agent
from research_rl.envs import Question

FOLDER = ROOT / "configs" / "method"
FILES = sorted(FOLDER.glob("*.yaml"))
QUESTION = Question("1", "Who?", ("x",))


def methods(file: Path) -> dict[str, dict[str, Any]]:
    """Names and settings of the methods of a file."""
    text = file.read_text(encoding="utf-8")
    assert text.startswith("#"), "a config begins by saying what it is"
    return dict(yaml.safe_load(text)["methods"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_makes_agents_that_answer(file: Path) -> None:
    for spec in methods(file).values():
        kind = getattr(research_rl.agents, spec["class_path"])
        agent = kind(generator=Scripted(lambda one: "x"), retriever=Ranked(), **spec["init_args"])
        assert isinstance(agent, Agent)
        assert agent.answer([QUESTION])[0].question == QUESTION


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_it_shows_is_the_default(file: Path) -> None:
    if file.stem in ("as_published", "research"):
        assert all(spec["init_args"] for spec in methods(file).values())
        return
    for spec in methods(file).values():
        taken = inspect.signature(getattr(research_rl.agents, spec["class_path"])).parameters
        defaults = {name: taken[name].default for name in spec["init_args"]}
        if spec["class_path"] == "IRCoT":
            defaults["iterations"] = 8  # null there, as the number depends on `faithful`
        assert spec["init_args"] == defaults


def test_every_method_has_a_file() -> None:
    named = {spec["class_path"] for file in FILES for spec in methods(file).values()}
    assert named == {"NaiveGeneration", "NaiveRAG", "IRCoT", "IterRetGen", "ReSearch"}
