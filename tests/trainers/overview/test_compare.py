"""Runs beside each other: true differences, honest tests, names that tell them apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from doubles.pages import Tags, text_of
from doubles.run_folders import dead, forgetful, healthy, rollout_row, strange, write_rollouts

from research_rl.trainers.overview import compare
from research_rl.trainers.overview.answered import pairs_of
from research_rl.trainers.overview.compare import (
    comparison_of,
    comparison_page,
    comparison_text,
    labels_of,
)
from research_rl.trainers.overview.folder import RunFolder
from research_rl.trainers.overview.listing import runs_in, runs_table


def runs_of(*folders: Path) -> list[RunFolder]:
    return [RunFolder.read(folder) for folder in folders]


def test_what_differs_is_told(tmp_path: Path) -> None:
    one = healthy(tmp_path / "a")
    other = healthy(tmp_path / "b", gain=0.5, model__updates__group_size=4)
    found = comparison_of(runs_of(one, other), resamples=200)
    assert found.labels == ["a", "b"]
    assert found.options == {"model.updates.group_size": ["16", "4"]}
    assert found.facts["best validation F1"] == ["0.556 at step 5", "0.278 at step 5"]
    assert {example.question for example in found.examples} == {
        f"Who owns house {number} ?" for number in (3, 4, 5)
    }


def test_kinds_of_questions_stand_beside_each_other(tmp_path: Path) -> None:
    found = comparison_of(runs_of(healthy(tmp_path / "a"), forgetful(tmp_path / "b")))
    assert found.facts["latest validation F1, 1 hop"] == ["–", "1.000"]
    assert found.facts["latest validation F1, 3 hops"] == ["–", "0.000"]
    assert found.facts["verdict"] == ["well", "watch"]


def test_other_questions_are_told(tmp_path: Path) -> None:
    a, b = healthy(tmp_path / "a"), healthy(tmp_path / "b")
    assert not comparison_of(runs_of(a, b)).notes
    write_rollouts(b, [rollout_row(5, number, True) for number in range(6, 11)])
    (note,) = comparison_of(runs_of(a, b)).notes
    assert "rollouts of a are of 8 questions and those of b of 5; 2 are the same." in note


def test_answers_are_paired_by_question(tmp_path: Path) -> None:
    one, other = healthy(tmp_path / "a"), healthy(tmp_path / "b", gain=0.5)
    extra = rollout_row(5, 99, True)
    rows = RunFolder.read(other).rollouts
    write_rollouts(other, [*rows[::-1], extra])  # in another order, with one more question
    em, f1 = comparison_of(runs_of(one, other), resamples=200).against
    assert (em.measure, f1.measure) == ("em", "f1")
    assert (em.paired.n, em.paired.unpaired) == (8, 1)
    assert em.paired.difference == pytest.approx(3 / 8)
    assert em.p is not None
    assert em.paired.p_value is not None
    assert em.p >= em.paired.p_value, "corrected for both lines"


def test_answers_before_any_training_are_called_so(tmp_path: Path) -> None:
    early = [healthy(tmp_path / name, steps=3) for name in ("a", "b")]
    found = comparison_of(runs_of(*early), resamples=200)
    page = text_of(comparison_page(found, runs_of(*early), tmp_path / "c.html"))
    for said in (page, comparison_text(found)):
        assert "validation before any training step (step 0 of both)" in said
        assert "Validated only at step 0, before any training step: a, b." in said
        assert "latest validation (" not in said
    assert page.index("Validated only at step 0") < page.index("Is the difference real?")
    later = healthy(tmp_path / "later")
    found = comparison_of(runs_of(later, early[0]), resamples=200)
    asked = "latest validation (step 5 and step 0, before any training step)"
    assert {one.asked for one in found.against} == {asked}
    assert any("before any training step: a." in note for note in found.notes)


def test_equal_ids_of_other_questions_are_not_paired(tmp_path: Path) -> None:
    one, other = healthy(tmp_path / "a"), healthy(tmp_path / "b")
    write_rollouts(other, [rollout_row(5, n, True, question=f"Which {n} ?") for n in range(8)])
    found = comparison_of(runs_of(one, other), resamples=200)
    assert found.against == []
    assert "No two runs were asked the same questions" in found.notes[-1]


def evaluated(folder: Path, em: dict[str, float], name: str = "evaluation") -> Path:
    """Add an evaluation of ReSearch on houses to a run: ``em`` of each model; question 9 failed."""
    (folder / name).mkdir()
    rows = [
        {"dataset": "houses", "model": model, "method": "ReSearch", "id": str(n), "question": "?"}
        | {"em": value, "f1": 0.5, "error": "x" if n == 9 else None}
        for model, value in em.items()
        for n in range(10)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name / "rows.jsonl").write_text(text)
    return folder


def differences(*folders: Path) -> tuple[dict[str, tuple[float, int]], list[str]]:
    """What was asked in evaluations -> difference in EM and n, and the notes."""
    found = comparison_of(runs_of(*folders), resamples=200)
    tests = (one for one in found.against if one.measure == "em" and "validation" not in one.asked)
    return {one.asked: (one.paired.difference or 0.0, one.paired.n) for one in tests}, found.notes


def test_evaluations_are_paired_by_method_and_data_set(tmp_path: Path) -> None:
    one = evaluated(healthy(tmp_path / "a"), {"m0": 1.0})
    other = evaluated(healthy(tmp_path / "b"), {"m1": 0.0})
    with (other / "evaluation" / "rows.jsonl").open("a") as file:
        row = {"dataset": "houses", "model": "m1", "method": "only b", "id": "1", "em": 1.0}
        file.write(json.dumps(row) + "\n")
    asked, _ = differences(one, other)
    assert asked == {"ReSearch on houses (models m0 and m1)": (1.0, 9)}, "an error is no answer"


def test_each_run_is_paired_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[RunFolder] = []
    monkeypatch.setattr(
        compare, "pairs_of", lambda first, other: others.append(other) or pairs_of(first, other)
    )
    runs = runs_of(*(evaluated(healthy(tmp_path / name), {"m": 1.0}) for name in "abc"))
    assert comparison_of(runs, resamples=200).against
    assert others == runs[1:]


def test_a_model_is_held_against_itself(tmp_path: Path) -> None:
    one = evaluated(healthy(tmp_path / "a"), {"before": 0.0, "after": 1.0})
    other = evaluated(healthy(tmp_path / "b"), {"after": 1.0, "before": 0.0})
    same = {"ReSearch on houses (model before)", "ReSearch on houses (model after)"}
    assert differences(one, other)[0] == dict.fromkeys(same, (0.0, 9))
    third = evaluated(healthy(tmp_path / "c"), {"after": 0.0})
    assert differences(one, third)[0] == {"ReSearch on houses (model after)": (1.0, 9)}
    last = evaluated(healthy(tmp_path / "d"), {"mine": 0.0})
    asked, (note,) = differences(one, last)
    assert asked == {}, "nobody knows which of two models is meant"
    assert "a and d: ReSearch on houses was asked of other models, after / before and mine" in note


def test_several_evaluations_of_a_run_are_kept_apart(tmp_path: Path) -> None:
    one = evaluated(evaluated(healthy(tmp_path / "a"), {"m": 1.0}), {"m": 0.0}, "later")
    other = evaluated(evaluated(healthy(tmp_path / "b"), {"m": 1.0}), {"m": 0.0}, "later")
    names = {f"ReSearch on houses (model m, {name})" for name in ("evaluation", "later")}
    assert differences(one, other)[0] == dict.fromkeys(names, (0.0, 9))
    third = evaluated(healthy(tmp_path / "c"), {"m": 0.0}, "third")
    asked, (note,) = differences(one, third)
    assert asked == {}
    assert "lies in several evaluations of a run, evaluation / later and third" in note


def test_labels_tell_runs_apart() -> None:
    paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/x/b/other")]
    assert labels_of(paths[1:]) == ["run", "other"]
    assert labels_of(paths) == ["a/run", "b/run", "b/other"]
    assert labels_of([paths[0], paths[0]]) == ["run (1)", "run (2)"]


def test_one_run_is_not_compared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least two"):
        comparison_of(runs_of(dead(tmp_path)))


def test_the_page_links_to_the_runs(tmp_path: Path) -> None:
    one, other = healthy(tmp_path / "a"), healthy(tmp_path / "b", gain=0.5)
    (one / "index.html").touch()
    (one / "rollouts" / "val_000005.html").touch()
    runs = runs_of(one, other)
    page = comparison_page(comparison_of(runs, 200), runs, tmp_path / "pages" / "c.html")
    assert 'href="../a/index.html"' in page
    assert 'href="../a/rollouts/val_000005.html#4"' in page
    assert "../b/" not in page, "what is not there is no link"
    assert "Questions that were not answered alike" in text_of(page)


def test_hostile_runs_stay_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = runs_of(
        strange(tmp_path / "<b>$x$"), strange(tmp_path / "\x1b[31m"), dead(tmp_path / "d")
    )
    found = comparison_of(runs, resamples=200)
    page = Tags(comparison_page(found, runs, tmp_path / "c.html"))
    assert page.odd == []
    assert not {"script", "b"} & set(page.tags)
    said = comparison_text(found)
    assert "\x1b" not in said
    said.encode("utf-8")


def test_runs_are_listed_latest_first(tmp_path: Path) -> None:
    healthy(tmp_path / "group" / "good")
    dead(tmp_path / "bad")
    strange(tmp_path / "odd\x1b[2J")
    (tmp_path / "bad" / "test").mkdir()
    (tmp_path / "bad" / "test" / "metrics.csv").write_text("step,test/f1\n0,1\n")
    (tmp_path / "no run").mkdir()
    lines = runs_in(tmp_path)
    assert [line.changed for line in lines] == sorted((x.changed for x in lines), reverse=True)
    by_name = {line.name: line for line in lines}
    assert by_name.keys() == {"group/good", "bad", "odd\x1b[2J"}
    good = by_name["group/good"]
    assert (good.state, good.step, good.best, good.verdict) == (
        "finished",
        "10/10",
        "0.556 at 5",
        "well",
    )
    assert (by_name["bad"].state, by_name["bad"].verdict) == ("stopped", "ill")
    table = runs_table(lines)
    assert "\x1b" not in table
    assert len(table.splitlines()) == 4
    assert [line.name for line in runs_in(tmp_path / "bad")] == ["bad"]
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        runs_in(tmp_path / "none")
