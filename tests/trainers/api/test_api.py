"""The functions of ``research_rl`` do what the commands do."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from doubles.tiny_run import write_config
from hypothesis import given
from hypothesis import strategies as st

import research_rl
from research_rl.trainers.api import command_words
from research_rl.trainers.settings import UsageError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_ask_and_evaluate(config: Path, here: Path) -> None:
    run = research_rl.train(
        config,
        {
            "trainer": {
                "callbacks": [{"class_path": "RunCheckpoint"}, {"class_path": "ExportPolicy"}]
            }
        },
        {"trainer.max_steps": 1, "trainer.default_root_dir": here / "mine"},
    )
    assert run.folder == here / "mine"
    assert (run.folder / "config.yaml").is_file()
    assert {"train/reward", "val/f1"} <= set(run.metrics)
    assert run.checkpoint is not None
    assert run.checkpoint.is_file()
    assert run.policy == run.folder / "policy"
    assert [row["train/reward"] for row in run.history if "train/reward" in row]

    with pytest.raises(UsageError, match="holds a run already"):
        research_rl.train(config, {"trainer.default_root_dir": str(run.folder)})
    again = research_rl.train(run.folder / "config.yaml", {"trainer.max_steps": 2}, resume="last")
    assert sum("train/reward" in row for row in again.history) == 2
    over = research_rl.train(run.folder / "config.yaml", {"trainer.max_steps": 2}, resume="last")
    newest = [row["val/f1"] for row in over.history if "val/f1" in row][-1]
    assert over.metrics["val/f1"] == newest, "nothing was left to do, and the run has its figures"

    world = yaml.safe_load((run.folder / "config.yaml").read_text())["model"]["env"]
    index = world["index"] or write_index(here)
    one = research_rl.ask("Who ?", run, index=str(index), max_tokens=8)
    two = research_rl.ask("Who ?", run.folder, index=str(index), max_tokens=8)
    three = research_rl.ask("Where ?", model=run.policy, index=Path(index), max_tokens=8)
    assert one.question.text == two.question.text == "Who ?"
    assert one.text == two.text
    assert three.question.text == "Where ?"

    found = research_rl.evaluate(
        {
            "out": here / "evaluation",
            "datasets": {"people": {"world": {"num_questions": 2, "num_people": 60}}},
            "models": {"mine": {"run": str(run.folder)}},
            "methods": {
                "ReSearch": {"class_path": "ReSearch", "init_args": {"max_response_tokens": 8}}
            },
            "resamples": 100,
        }
    )
    assert found.folder == Path(here / "evaluation")
    assert (found.folder / "report.html").is_file()
    assert "ReSearch" in found.card
    assert found.rows


def write_index(folder: Path) -> Path:
    from research_rl.envs.retrieval.index.build import build_index

    corpus = folder / "corpus.jsonl"
    corpus.write_text('{"id": "1", "contents": "Oslo\\nOslo is a city."}\n')
    build_index(corpus, folder / "index")
    return folder / "index"


def test_mistakes_are_errors_and_not_exits(config: Path, here: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean quickstart\?"):
        research_rl.train("quikstart")
    with pytest.raises(UsageError, match=r"data\.batch_size: Expected a <class 'int'>"):
        research_rl.train(config, {"data.batch_size": "x"})
    with pytest.raises(UsageError, match=r"did you mean data\.batch_size\?"):
        research_rl.train(config, {"data.batch_siz": 4})
    with pytest.raises(UsageError, match="did you mean evaluate/quickstart"):
        research_rl.evaluate("evaluate/quickstar")
    with pytest.raises(UsageError, match="a model must be named"):
        research_rl.ask("Who ?")
    with pytest.raises(TypeError, match="no option 'modle'"):
        research_rl.ask("Who ?", modle="x")
    with pytest.raises(TypeError, match="must be a number, a text"):
        research_rl.train({"model.env.reward": object()})
    with pytest.raises(TypeError, match="must be a shipped name"):
        research_rl.train(3)  # type: ignore[arg-type]


def test_a_class_stands_for_its_path() -> None:
    (_, text) = command_words([{"model.algorithm": UsageError, "model.algorithm.init_args.x": 1}])
    assert yaml.safe_load(text) == {
        "model": {
            "algorithm": {
                "class_path": "research_rl.trainers.settings.errors.UsageError",
                "init_args": {"x": 1},
            }
        }
    }
    assert command_words(["quickstart", Path("a.yaml")]) == [
        *("--config", "quickstart"),
        *("--config", "a.yaml"),
    ]


def test_only_outermost_names_are_split_at_dots() -> None:
    models = {"Qwen2.5-7B": {"run": "runs/a.b"}}
    (_, text) = command_words([{"models": models, "data.seed": 1, "a.b": {"c.d": UsageError}}])
    assert yaml.safe_load(text) == {
        "models": models,
        "data": {"seed": 1},
        "a": {"b": {"c.d": {"class_path": "research_rl.trainers.settings.errors.UsageError"}}},
    }


@pytest.mark.parametrize("turned", [False, True])
def test_sections_go_into_sections(turned: bool) -> None:
    both = [("model.env.reward", "em"), ("model", {"env": {"top_k": 3}})]
    (_, text) = command_words([dict(reversed(both) if turned else both)])
    assert yaml.safe_load(text) == {"model": {"env": {"reward": "em", "top_k": 3}}}
    clash = [("a.b", 1), ("a", 2)]
    with pytest.raises(TypeError, match="a must be a value or a section of options, got both"):
        command_words([dict(reversed(clash) if turned else clash)])


def test_numbers_of_numpy_are_numbers() -> None:
    (_, text) = command_words([{"a": np.float64(0.5), "b": np.str_("x"), "c": True, "d": 1}])
    assert yaml.safe_load(text) == {"a": 0.5, "b": "x", "c": True, "d": 1}
    with pytest.raises(TypeError, match="must be a number"):
        command_words([{"a": np.arange(2)}])


NAMES = st.text("abcdef_", min_size=1, max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(options=st.dictionaries(NAMES, VALUES, min_size=1, max_size=4))
def test_options_arrive_as_they_were_given(options: dict[str, Any]) -> None:
    (flag, text) = command_words([options])
    assert flag == "--config"
    assert yaml.safe_load(text) == options


def test_the_door_is_light_and_names_its_version() -> None:
    assert research_rl.__version__ == version("research-rl")
    assert {"train", "evaluate", "ask", "__version__"} <= set(dir(research_rl))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = research_rl.trian  # type: ignore[attr-defined]
    code = (
        "import sys, research_rl; research_rl.__version__\n"
        "print(*{m.partition('.')[0] for m in sys.modules} & {'torch', 'numpy', 'gymnasium'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
