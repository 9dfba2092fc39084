"""Another reward on stored rollouts: what it changes, by hand, and from files of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from doubles.sample_rollouts import HOSTILE, rollout, rollouts

from research_rl.envs import Reward
from research_rl.trainers.recorder.compared import Rescored, compared, report_of
from research_rl.trainers.recorder.rescore import main, passages_of
from research_rl.trainers.viewer import RolloutFiles


def group(name: str, *values: tuple[float, float]) -> list[Rescored]:
    return [Rescored(name, before, after, {}) for before, after in values]


def test_counts_by_hand() -> None:
    found = compared(
        [
            *group("same", (1.0, 0.5), (0.0, 0.0)),  # other numbers, same order
            *group("gains", (0.1, 0.1), (0.1, 0.2)),  # a tie that is told apart
            *group("loses", (1.0, 0.3), (0.5, 0.3)),
            *group("turned", (1.0, 0.0), (0.0, 1.0)),
            *group("constant", (0.2, 0.1), (0.2, 0.1)),
            *group("alone", (1.0, 1.0)),
        ]
    )
    assert found["rollouts"] == 11
    assert found["changed"] == 8
    assert found["mean_before"] == pytest.approx(5.1 / 11)
    assert found["mean_after"] == pytest.approx(3.6 / 11)
    counts = ("groups", "reordered", "reversed", "gained", "lost")
    assert [found[name] for name in counts] == [5, 3, 1, 1, 1]
    assert (found["with_signal_before"], found["with_signal_after"]) == (3, 3)
    assert found["sign_changed"] == pytest.approx(6 / 10)


def test_rounding_is_no_change() -> None:
    found = compared(group("a", (0.3, 0.1 + 0.2), (0.1, 0.1)))
    assert (found["changed"], found["reordered"], found["sign_changed"]) == (0, 0, 0.0)


def test_one_rollout_a_question_has_nothing_to_compare() -> None:
    found = compared(group("a", (1.0, 0.0)))
    assert (found["groups"], found["sign_changed"]) == (0, 0.0)
    assert "no group holds two" in report_of("em", found)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    RolloutFiles(tmp_path / "rollouts").write("train", 3, rollouts())
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    main([*args, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_rows_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right 1, wrong 0.1, malformed 0; em pays the wrong one nothing."""
    found = said(capsys, str(run), "--reward", "em")
    assert (found["rollouts"], found["changed"], found["groups"]) == (5, 2, 2)
    assert found["mean_before"] == pytest.approx(2.2 / 5)
    assert found["mean_after"] == pytest.approx(2.0 / 5)
    assert (found["reordered"], found["reversed"], found["lost"]) == (1, 0, 0)
    same = said(capsys, str(run), "--reward", "default")
    assert (same["changed"], same["sign_changed"]) == (0, 0.0)


def test_terms_see_what_was_found(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, str(run), "--reward", '{"answer": 0.8, "evidence": 0.2}')
    # of five rollouts two are right, and the four of right form have their one gold passage
    assert found["parts"] == pytest.approx({"answer": 1.6 / 5, "evidence": 0.8 / 5})
    assert found["mean_after"] == pytest.approx(2.4 / 5)


def test_a_price_is_taken_within_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = rollout("right")
    twice.queries, twice.passage_ids = ["q", "q"], [["p1"], ["p1"]]
    RolloutFiles(tmp_path).write("train", 0, [rollout("right"), twice])
    RolloutFiles(tmp_path).write("train", 1, [twice, twice])
    found = said(capsys, str(tmp_path), "--reward", "default", "--price", "0.1")
    assert (found["changed"], found["gained"], found["groups"]) == (1, 1, 2)
    assert found["mean_after"] == pytest.approx(3.9 / 4)


def test_a_price_goes_by_the_other_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was stored as right and what as wrong is all right by the reward that is asked now."""
    twice = rollout("right")
    twice.queries, twice.passage_ids = ["q", "q"], [["p1"], ["p1"]]
    twice.reward = Reward(0.0, 0.0, 0.0, "too long")
    RolloutFiles(tmp_path).write("train", 0, [rollout("right"), twice])
    found = said(capsys, str(tmp_path), "--reward", "default", "--price", "0.1")
    assert found["mean_after"] == pytest.approx(1.9 / 2)


def test_text_is_for_people(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run / "rollouts" / "rollouts.jsonl"), "--reward", "em"])
    text = capsys.readouterr().out
    assert "rewards      2 of 5 change; mean 0.440 before, 0.400 after" in text
    assert "order        changed in 1 of 2 groups (50%), turned round in 0" in text


def test_an_older_file_lacks_metadata_and_spoilt_lines_are_counted(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    file = run / "rollouts" / "rollouts.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        del row["metadata"]
    lines = [json.dumps(row) for row in rows]
    file.write_text("\n".join([*lines, '{"half": ', "[1]", ""]))
    found = said(capsys, str(run), "--reward", '{"answer": 0.8, "evidence": 0.2}')
    assert found["parts"]["evidence"] == 0.0
    assert f"2 lines of {file} are no rollouts" in caplog.text
    assert f"5 rollouts of {file} are stored without the question's metadata" in caplog.text


def test_an_episode_that_was_cut_is_paid_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = rollout("right")
    one.finish_reason = "length"
    RolloutFiles(tmp_path).write("train", 0, [one])
    assert said(capsys, str(tmp_path), "--reward", "default")["mean_after"] == 0.0


def test_hostile_text_is_only_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RolloutFiles(tmp_path).write("train", 0, [rollout("right", HOSTILE, HOSTILE)])
    main([str(tmp_path), "--reward", '{"answer": 0.5, "citations": 0.5}'])
    assert "\x1b" not in capsys.readouterr().out


def test_contents_are_those_of_the_result() -> None:
    one = rollout("right")
    assert [p.contents.partition("\n")[0] for p in passages_of(one)[0]] == ["Bakset", "Veros"]
    one.passage_ids = [["p1"]]  # two pieces for one passage: it cannot be told
    assert [p.contents for p in passages_of(one)[0]] == [""]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere", "--reward", "em"], "must hold records"),
        ([".", "--reward", "em", "--split", "val"], "rollouts of the split val, got none"),
        ([".", "--reward", "emm"], "reward must be one of"),
    ],
)
def test_mistakes_are_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(run)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(args)
