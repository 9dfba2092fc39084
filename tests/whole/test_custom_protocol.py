"""The example of a protocol of one's own: it is short, the linter passes it, and a run trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from doubles import tiny_run
from doubles.places import ROOT
from doubles.toy_world import QUESTIONS, Echo

from research_rl.envs import ReSearchEnv
from research_rl.trainers.cli.fit import run

EXAMPLES = ROOT / "examples"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, with the example on the path as if it lay there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("sys.argv", ["research"])
    return tmp_path


def test_it_is_short() -> None:
    assert len((EXAMPLES / "custom_protocol.py").read_text("utf-8").splitlines()) <= 40


def test_it_is_played(folder: Path) -> None:
    import custom_protocol  # type: ignore[import-not-found]

    protocol = custom_protocol.Brackets()
    env = ReSearchEnv(questions=QUESTIONS, index=Echo(), top_k=1, protocol=protocol)
    prompt, _ = env.reset(options={"question": 0})
    assert "[find] a query [/find]" in prompt
    text, *_ = env.step("[think] t [/think] [find] door [/find]")
    assert text == " [found]\n1. house: found door (0)\n[/found]"
    _, reward, *_, info = env.step("[think] t [/think] [say] Owner 0 [/say]")
    assert (reward, info["format_error"]) == (1.0, "")


def test_a_run_trains_two_steps_in_it(folder: Path) -> None:
    config = tiny_run.write_config(folder)
    chosen = ["--model.env.protocol.class_path", "custom_protocol.Brackets"]
    trained = run(["fit", "--config", str(config), *chosen, "--trainer.max_steps", "2"])
    assert trained.trainer.global_step == 2
    written = yaml.safe_load((folder / "runs/tiny/config.yaml").read_text())
    told = written["model"]["env"]["protocol"]
    assert told["class_path"] == "custom_protocol.Brackets"
