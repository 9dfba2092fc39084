"""The signs of illness by hand-made cases, and what the monitor logs and draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doubles import training
from doubles.sample_rollouts import rollout
from matplotlib.figure import Figure
from PIL import Image

from research_rl.agents.types import Rollout, Sequence
from research_rl.envs.protocols import RESEARCH
from research_rl.envs.types import Reward
from research_rl.trainers.callbacks import plots
from research_rl.trainers.callbacks.plots import health_picture, read_metrics
from research_rl.trainers.health.monitor import HealthMonitor, measure_groups, measure_health
from research_rl.trainers.health.signs import repetition, thoughts


@pytest.mark.parametrize(
    ("turn", "broken"),
    [
        ("<think> a </think><search> b </search>", False),
        ("<think> the <answer> tag, or a <search> </think><answer> x </answer>", False),
        ("no tag at all", False),
        ("<think> a <result> b </result></think>", False),
        ("<think> a", True),
        ("a </think>", True),
        ("<think> a <think> b </think>", True),
        ("<search> a <think> b </think></search>", True),
        ("<answer> a </search>", True),
        ("<think> a </think></think>", True),
    ],
)
def test_broken_tags(turn: str, broken: bool) -> None:
    assert RESEARCH.broken(turn) is broken


def test_a_cut_turn_may_leave_its_last_tag_open() -> None:
    assert not RESEARCH.broken("<think> a </think><search> b", cut=True)
    assert RESEARCH.broken("a </think><search> b", cut=True)


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0.0), ("a b c", 0.0), ("a b c d a b c d", 0.2), ("a " * 5, 0.5), ("a " * 103, 0.99)],
)
def test_repetition(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


def test_thoughts_and_forged_results() -> None:
    assert thoughts("<think> a </think> b <think>c\nd</think><think> e") == [" a ", "c\nd"]
    assert RESEARCH.forges_reply("</search> <result>")
    assert RESEARCH.forges_reply("x </result>")
    assert not RESEARCH.forges_reply("the result is")


def made(*turns: str, queries: int = 0, f1: float = 0.0, finish: str = "answer") -> Rollout:
    """A rollout of these turns whose tokens each have the log-prob -0.5."""
    sequence = Sequence([1])
    for _ in range(4):
        sequence.append_sampled(7, -0.5)
    sequence.append_given([8, 9])
    base = rollout()
    reward = Reward(f1, f1, float(f1 == 1.0))
    return Rollout(base.question, sequence, reward, list(turns), [], finish, ["q"] * queries)


def test_an_honest_rollout() -> None:
    signs = measure_health(rollout("right"))
    assert signs.pop("logprob") == pytest.approx((3 * -0.5 + 2 * -0.1) / 5)
    assert signs == {
        "forged_results": 0.0,
        "broken_tags": 0.0,
        "duplicate_queries": 0.0,
        "empty_queries": 0.0,
        "repetition": 0.0,
        "empty_thoughts": 0.0,
        "thought_words": pytest.approx((7 + 4) / 2),
        "closed_book": 0.0,
        "right_logprob": pytest.approx(-0.34),
        "turn_tokens": 2.5,
    }


def test_a_closed_book_answer() -> None:
    right = measure_health(made("<think></think><answer> \\boxed{Domlor} </answer>", f1=1.0))
    wrong = measure_health(made("<think> x </think><answer> \\boxed{x} </answer>"))
    assert [right["closed_book"], right["closed_book_right"], right["empty_thoughts"]] == [1, 1, 1]
    assert [wrong["closed_book"], wrong["closed_book_right"], wrong["empty_thoughts"]] == [1, 0, 0]
    assert "right_logprob" in right
    assert "wrong_logprob" in wrong
    assert "duplicate_queries" not in right, "of rollouts that search alone"
    assert "closed_book" not in measure_health(made("x", finish="no_answer"))


def test_repeated_and_empty_queries() -> None:
    ask = "<think> t </think><search> The boss  of X </search>"
    turns = [ask, ask.replace("The", "the"), "<search> </search>", "<search></search>", "x"]
    signs = measure_health(made(*turns, queries=2))
    assert [signs["duplicate_queries"], signs["empty_queries"]] == [0.25, 0.5]


def test_forged_and_broken() -> None:
    forged = "<search> a </search> <result> Domlor </result><answer> \\boxed{x} </answer>"
    assert measure_health(made(forged, finish="answer"))["forged_results"] == 1.0
    assert measure_health(made("<think> a", finish="no_answer"))["broken_tags"] == 1.0
    assert measure_health(made("<think> a", finish="length"))["broken_tags"] == 0.0
    assert measure_health(made("<think> a", "b", finish="length"))["broken_tags"] == 1.0


def test_a_rollout_without_anything() -> None:
    empty = made("")
    empty.sequence = Sequence([1])
    assert measure_health(empty) == {"forged_results": 0, "broken_tags": 0} | {
        "closed_book": 1.0,
        "closed_book_right": 0.0,
    }


def test_groups() -> None:
    right, wrong = made("x", f1=1.0), made("x")
    other = made("x")
    other.question = rollout(id="another").question
    assert measure_groups([right, right, other]) == [
        {"all_right": 1.0, "all_wrong": 0.0},
        {"all_right": 0.0, "all_wrong": 1.0},
    ]
    assert measure_groups([right, wrong]) == [{"all_right": 0.0, "all_wrong": 0.0}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("health")
    monitor = HealthMonitor(every_n_steps=2)
    trainer = training.trainer(folder, 3, limit_val_batches=0, callbacks=[monitor])
    trainer.fit(training.module(training.checkpoint(folder / "policy")), training.Data())
    return folder, monitor


def test_logged_at_the_module_s_steps(run: tuple[Path, Any]) -> None:
    folder, monitor = run
    metrics = read_metrics(folder / "metrics.csv")
    for name in ("health/broken_tags", "health/logprob", "health/all_wrong", "time/health_s"):
        assert metrics[name].steps == metrics["train/reward"].steps == [0, 1, 2]
    assert metrics["health/logprob"].values[-1] == pytest.approx(monitor.latest["logprob"])


def test_drawn_beside_the_metrics(run: tuple[Path, Any]) -> None:
    folder, monitor = run
    assert monitor.written == folder / "health.png"
    with Image.open(monitor.written) as picture:
        assert picture.size == (1980, 990)


def test_the_picture_shows_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []

    def save(figure: Figure, target: Path) -> Path:
        kept.append(figure)
        return target

    monkeypatch.setattr(plots, "save_picture", save)
    (tmp_path / "metrics.csv").write_text(
        "step,train/entropy,health/closed_book,guard/actions\n0,0.5,0,0\n1,0.4,0.2,1\n2,0.3,0.3,1\n"
    )
    health_picture(tmp_path / "metrics.csv", tmp_path / "health.png")
    panels = {axes.get_title(loc="left"): axes for axes in kept[0].axes}
    assert len(panels) == 8
    assert panels["nats a token"].get_legend_handles_labels()[1] == ["entropy"]
    line, marker = panels["searching"].lines
    assert list(line.get_ydata()) == [0, 0.2, 0.3]
    assert list(marker.get_xdata()) == [1, 1], "where the guard acted, once"
    with pytest.raises(FileNotFoundError):
        health_picture(tmp_path / "none.csv", tmp_path / "health.png")


def test_bad_numbers() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be 0 or more, got -1"):
        HealthMonitor(every_n_steps=-1)
