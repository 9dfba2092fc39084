"""Reading a run's folder: whatever is in it is text or numbers, and nothing is lost unnamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from doubles.run_folders import dead, healthy, rollout_row, strange, write_metrics, write_rollouts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research_rl.trainers.overview.folder import RunFolder, is_run, nested, number
from research_rl.trainers.overview.page import run_page

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["split", "step", "question_id", "question", "reward", "em", "queries", "answers", "hops"]
)


def test_a_run_is_read(tmp_path: Path) -> None:
    run = RunFolder.read(healthy(tmp_path / "mine"))
    assert (run.name, run.iterations, len(run.rollouts), run.problems) == ("mine", 10, 16, [])
    assert run.option("model.updates.group_size") == 16
    assert run.option("model.nothing.here", "default") == "default"
    assert run.last("train/reward") == pytest.approx(0.9)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="research runs"):
        RunFolder.read(tmp_path)
    (tmp_path / "config.json").touch()  # a model's folder
    (tmp_path / "config.yaml").touch()
    assert not is_run(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    healthy(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    (tmp_path / "costs.json").write_text("[1]")
    write_rollouts(tmp_path, [rollout_row(0, 1, True)])
    with (tmp_path / "rollouts" / "rollouts.jsonl").open("a") as file:
        file.write("\nhalf a ro")
    run = RunFolder.read(tmp_path)
    said = "\n".join(run.problems)
    assert "config.yaml cannot be read" in said
    assert "costs.json cannot be read" in said
    assert "1 of its rows were passed over, the first in line 3" in said
    assert len(run.rollouts) == 1


def test_a_file_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    dead(tmp_path)
    (tmp_path / "rollouts").mkdir()
    os.mkfifo(tmp_path / "rollouts" / "rollouts.jsonl")
    assert RunFolder.read(tmp_path).rollouts == []


def test_a_deep_or_huge_config_is_left_out(tmp_path: Path) -> None:
    write_metrics(tmp_path, [{"step": 0, "train/reward": 0}])
    for text in ("[" * 5000, "a: " + "x" * (5 << 20), "a: &a [1]\nb: !!python/object:os.system"):
        (tmp_path / "config.yaml").write_text(text)
        run = RunFolder.read(tmp_path)
        assert run.config == {}
        assert run.problems[0].startswith("config.yaml")


@pytest.mark.parametrize("value", [None, "1", True, float("nan"), float("inf"), 10**400, [1]])
def test_only_finite_numbers_are_numbers(value: Any) -> None:
    assert number(value) is None


def test_options_have_dotted_names() -> None:
    made = {"class_path": "a.b.GRPO", "init_args": {"kl_coef": 1}}
    listed = [{"class_path": "a.RolloutLog", "init_args": {"folder": "x"}}]
    found = dict(nested({"model": {"algorithm": made, "seed": 2}, "callbacks": listed}))
    assert found == {
        "model.algorithm": "GRPO",
        "model.algorithm.kl_coef": 1,
        "model.seed": 2,
        "callbacks.RolloutLog": "listed",
        "callbacks.RolloutLog.folder": "x",
    }


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=st.lists(st.dictionaries(NAMES | st.text(max_size=4), JSON) | JSON, max_size=5))
def test_any_rows_make_a_page(rows: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    write_metrics(folder, [{"step": 0, "train/loss": 1}])
    whole = [rollout_row(0, 1, True) | row for row in rows if isinstance(row, dict)]
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, *whole])
    (folder / "rollouts").mkdir(exist_ok=True)
    (folder / "rollouts" / "rollouts.jsonl").write_text(lines)
    for name in ("signal.jsonl", "guard.jsonl"):
        (folder / name).write_text(lines)
    run = RunFolder.read(folder)
    run.curves = {}  # no picture: it is not what is tested, and slow
    run_page(run)


def test_a_stranger_makes_nothing_run(tmp_path: Path) -> None:
    run = RunFolder.read(strange(tmp_path))
    assert len(run.rollouts) == 3
    assert run.problems == [
        "signal.jsonl: 1 of its rows were passed over, the first in line 2",
        "rollouts/rollouts.jsonl: 3 of its rows were passed over, the first in line 4",
    ]
