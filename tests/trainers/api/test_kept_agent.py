"""``research_rl.ask`` keeps its agent while all that it is made of is the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import research_rl
from research_rl.trainers.agent import Asked


class Made:
    """Stands for an agent, and counts how many were made."""

    def __init__(self) -> None:
        self.of: list[Asked] = []

    def __call__(self, settings: Asked) -> Made:
        self.of.append(settings)
        return self

    def notes(self, question: str) -> list[str]:
        return []

    def answer(self, questions: Sequence[str], hears: Any) -> list[str]:
        return [f"from {len(self.of)}"]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A finished quickstart, which is asked where nothing is named."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs/quickstart")
    (run / "policy").mkdir(parents=True)
    (run / "policy" / "model.safetensors").write_bytes(b"first")
    (run / "world" / "index").mkdir(parents=True)
    (run / "world" / "index" / "manifest.json").write_text("{}")
    env = {"index": str(run / "world" / "index"), "prompt": "prompt.txt", "top_k": 2}
    config = {"model": {"env": env, "sampling": {"max_response_tokens": 8}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    Path("prompt.txt").write_text("A: {prompt}")
    made = Made()
    monkeypatch.setattr("research_rl.trainers.agent.make_asker", made)
    monkeypatch.setattr("research_rl.trainers.api.run._kept", {})
    return made


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("runs/quickstart/policy/model.safetensors", "first", "other"),
        ("runs/quickstart/config.yaml", "top_k: 2", "top_k: 3"),
        ("runs/quickstart/world/index/manifest.json", "{}", "{ }"),
        ("prompt.txt", "A:", "Q:"),
    ],
)
def test_what_has_changed_is_opened_anew(made: Made, file: str, before: str, after: str) -> None:
    for _ in range(3):
        research_rl.ask("Who ?")
    assert len(made.of) == 1
    Path(file).write_text(Path(file).read_text().replace(before, after))
    research_rl.ask("Who ?")
    assert len(made.of) == 2
    research_rl.ask("Who ?", top_k=9)
    assert made.of[-1].top_k == 9
