"""The page of a run: true for healthy, dead, unfinished and strange runs, and nothing gets out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from doubles.pages import Tags, text_of
from doubles.run_folders import dead, forgetful, healthy, strange, write_config, write_metrics
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs.system import alone_in
from research_rl.trainers.health import Rule
from research_rl.trainers.overview import facts
from research_rl.trainers.overview.bands import bands_of
from research_rl.trainers.overview.facts import (
    costs_of,
    next_commands,
    spent_time,
    state_of,
    verdict_of_run,
)
from research_rl.trainers.overview.folder import RunFolder
from research_rl.trainers.overview.follow import followed_questions, spread
from research_rl.trainers.overview.hops import lost_hops
from research_rl.trainers.overview.listing import runs_in
from research_rl.trainers.overview.page import write_run_page
from research_rl.trainers.overview.shipped import compared_with_shipped, nearest_config


def page_of(folder: Path) -> str:
    return write_run_page(folder).read_text("utf-8")


def test_a_healthy_run(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "mine", model__updates__group_size=8)
    said = text_of(page_of(folder))
    assert "finished, 10 of 10 iterations" in said
    assert "Well No sign of trouble" in said
    assert "model.updates.group_size 16 8" in said
    assert "best validation F1 0.56 at step 5" in said
    assert f"research ask &#34;Who ...?&#34; --run {folder}" in said
    assert "tokens written 51,200" in said, "10 iterations of 16 questions x 8 rollouts x 40 tokens"


def test_a_dead_run_says_so_first(tmp_path: Path) -> None:
    said = text_of(page_of(dead(tmp_path / "dead")))
    assert said.index("No rollout was ever paid") < said.index("what helps show the form")
    assert "stopped, 6 of 50 iterations" in said
    assert "no reward was ever paid" in said
    assert "research collect --config" in said


def test_a_run_that_unlearned_some_questions_says_which(tmp_path: Path) -> None:
    said = text_of(page_of(forgetful(tmp_path / "mine")))
    assert "Watch No sign of collapse now, but it unlearned the questions with 3 hops." in said
    assert "fell from 0.60 at step 0 to 0.00 at step 10" in said
    assert "They need 3 searches, and it makes 2.00." in said
    assert "1 hop " not in said.partition("what helps")[0], "the others were learned"
    (line,) = runs_in(tmp_path)
    assert line.verdict == "watch", "the list says what the page says"


@pytest.mark.parametrize("means", [[0.6, 0.7], [0.6, 0.1]])
def test_that_the_mean_hides_it_is_said_where_it_does(means: list[float]) -> None:
    curves = {"val/f1": ([0, 10], means), "val/f1_3hop": ([0, 10], [0.6, 0.0])}
    (reason,) = verdict_of_run(RunFolder(Path("nowhere"), curves=curves), []).reasons
    assert ("the mean over all questions does not show it" in reason.said) == (means[1] == 0.7)


def test_a_handful_of_questions_says_nothing_of_a_run(tmp_path: Path) -> None:
    assert "Well No sign of trouble" in text_of(page_of(forgetful(tmp_path, questions=4)))


def test_hops_that_were_written_as_text_are_counted(tmp_path: Path) -> None:
    run = RunFolder.read(forgetful(tmp_path))
    for row in run.rollouts:
        row["hops"] = str(row["hops"])
    assert [curve.hops for curve, _ in lost_hops(run)] == [3]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_what_was_lost_was_there_before(values: list[float]) -> None:
    run = RunFolder(Path("nowhere"), curves={"val/f1_2hop": ([*range(len(values))], values)})
    for curve, (step, best) in lost_hops(run):
        assert best == max(values) == curve.points[step][1]
        assert curve.points[-1][1] < best / 2


def test_numbers_of_a_page_agree(tmp_path: Path) -> None:
    said = text_of(page_of(forgetful(tmp_path)))
    assert re.findall(r"time of iterations (\d+ \w+)", said) == ["1 min", "1 min"]
    assert "reward, training 0.46 began with 0.10" in said


def test_a_run_of_which_nothing_is_there_yet(tmp_path: Path) -> None:
    write_config(tmp_path)
    said = text_of(page_of(tmp_path))
    assert "not begun" in said
    assert "No iteration was trained yet." in said
    assert "--ckpt_path last" in said


def test_a_run_without_config(tmp_path: Path) -> None:
    write_metrics(tmp_path, [{"step": 3, "train/reward": 0.5}])
    said = text_of(page_of(tmp_path))
    assert "stopped, 4 iterations" in said
    assert "There is no config.yaml" in said


def test_states(tmp_path: Path) -> None:
    run = RunFolder.read(healthy(tmp_path, trainer__max_steps=20))
    assert str(state_of(run)) == "stopped, 10 of 20 iterations"
    with alone_in(tmp_path):
        assert state_of(run).name == "running"
        assert state_of(run, over=True).name == "stopped"
    assert state_of(run, over=False).name == "running", "whoever trains it knows"
    run.config["model"]["updates"]["num_minibatches"] = 2
    assert state_of(run).name == "finished", "max_steps counts updates, of which each makes two"


def test_a_run_of_some_passes_is_finished_behind_the_last(tmp_path: Path) -> None:
    healthy(tmp_path, trainer__max_steps=-1)
    assert str(state_of(RunFolder.read(tmp_path))) == "stopped, 10 iterations"
    for passes, state in ((10, "finished, 10 of 10"), (12, "stopped, 10 of 12")):
        (tmp_path / "costs.json").write_text(json.dumps({"iterations": passes}))
        assert str(state_of(RunFolder.read(tmp_path))) == f"{state} iterations"
    healthy(tmp_path, trainer__max_steps=11)
    assert state_of(RunFolder.read(tmp_path)).total == 11, "the nearer limit"


def test_a_run_whose_lock_cannot_be_seen_is_not_called_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "is_held", lambda folder: None)
    run = RunFolder.read(healthy(tmp_path, trainer__max_steps=20))
    assert str(state_of(run)) == "probably running, 10 of 20 iterations"
    run.changed -= 3600
    state = state_of(run)
    assert str(state) == "stopped or running elsewhere (unknown here), 10 of 20 iterations"
    for grade in ("well", "ill"):
        lines = [command.line for command in next_commands(run, state, grade)]  # type: ignore[arg-type]
        assert lines
        assert not any("--ckpt_path" in line for line in lines)
    run.config["trainer"]["max_steps"] = 10
    assert state_of(run).name == "finished"


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_that_imitates_goes_on_as_it_began(tmp_path: Path, recorded: bool) -> None:
    twice = {"model__updates__num_minibatches": 2, "trainer__max_steps": 20}
    run = RunFolder.read(healthy(tmp_path, **twice))
    assert state_of(run).name == "finished"
    write_metrics(tmp_path, [{"step": step, "train/nll": 0.5} for step in range(10)])
    if recorded:
        (tmp_path / "costs.json").write_text('{"command": "sft"}')
        write_metrics(tmp_path, [{"step": 9, "val/f1": 0.5, "train/reward": 1.0}])
    run = RunFolder.read(tmp_path)
    assert str(state_of(run)) == "stopped, 10 of 20 iterations"
    again = next_commands(run, state_of(run), "well")[0].line
    assert again == f"research sft --config {tmp_path}/config.yaml --ckpt_path last"


def test_an_illness_that_passed_is_told(tmp_path: Path) -> None:
    broken = [0.97] * 6 + [0.2] * 3 + [0.97] * 20
    rows = [{"step": s, "train/reward": 0.5, "train/format": f} for s, f in enumerate(broken)]
    write_metrics(tmp_path, rows)
    run = RunFolder.read(tmp_path)
    (form,) = (band for band in bands_of(run) if band.name == "right form")
    assert (form.state, form.broken) == ("was ill", ["the form breaks"])
    assert form.limits == "below 0.68"
    assert verdict_of_run(run, bands_of(run)).grade == "watch"
    write_metrics(tmp_path, rows[:9])
    run = RunFolder.read(tmp_path)
    verdict = verdict_of_run(run, bands_of(run))
    assert (verdict.grade, verdict.said) == ("ill", "Ill now: right form.")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_a_sign_is_judged_by_the_number_that_is_shown(values: list[float]) -> None:
    run = RunFolder(Path("run"))
    run.curves["health/all_wrong"] = (list(range(len(values))), values)
    rule = Rule("hopeless", "health/all_wrong", "above", limit=0.9)
    (band,) = bands_of(run, [rule])
    assert (band.state == "ill") == (band.now > 0.9 and len(values) > 1)
    assert (band.early is None) == (len(values) < 4)
    if len(values) > 1 and min(values[-2:]) > 0.9:
        assert band.state == "ill", "a guard would warn"


def test_words_badge_and_number_agree_after_three_iterations(tmp_path: Path) -> None:
    wrong = [1.0, 1.0, 0.9375]
    rows = [{"step": s, "train/reward": 0.1, "health/all_wrong": w} for s, w in enumerate(wrong)]
    write_metrics(tmp_path, rows)
    said = text_of(page_of(tmp_path))
    assert "Ill now: hopeless questions. 3 iterations: too few to compare" in said
    assert "hopeless questions ill 1.00 – above 0.98" in said
    assert "Too few iterations to compare" in said
    assert "Well now" not in said


def test_the_nearest_config_is_found(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "a", trainer__max_steps=50)
    run = RunFolder.read(folder)
    assert nearest_config(run) == "quickstart"
    assert compared_with_shipped(run).differences == [], "its folder is no difference"
    run.config["model"]["updates"]["num_epochs"] = 3
    assert compared_with_shipped(run).differences == [], "an option that the file does not name"
    whole = dict(run.config, model={**run.config["model"], "updates": {"group_size": 16}})
    said = list[str]()
    found = compared_with_shipped(run, lambda words: said.extend(words) or whole)
    assert said == ["--config", "quickstart"]
    assert ("model.updates.num_epochs", "not set", "3") in found.differences

    def refused(words: list[str]) -> dict[str, object]:
        raise ValueError("no such option")

    assert not compared_with_shipped(run, refused).whole
    run.config["data"]["world"]["eval_hops"] = [1, 2, 3]
    run.config["trainer"] |= {"max_steps": 40, "val_check_interval": 10}
    run.config["data"]["world"]["train_hops"] = {"1": 1, "2": 2, "3": 3.0}
    assert nearest_config(run) == "quickstart + three_hops"
    del run.config["model"]
    assert nearest_config(run) is None


def test_a_resolver_of_a_stranger_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "hidden-thing")
    healthy(tmp_path, model__env__index="${oc.env:SECRET_OF_MINE}")
    page = page_of(tmp_path)
    assert "hidden-thing" not in page
    assert "oc.env:SECRET_OF_MINE" in page


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = page_of(strange(tmp_path / "</title><script>owned=1</script>"[:9]))
    found = Tags(page)
    assert found.odd == []
    assert "script" not in found.tags
    assert found.tags.count("img") == 2, "curves and health"
    assert "&lt;/script&gt;" in page


def test_no_name_of_a_folder_is_a_scheme(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "run")
    theirs = folder / "javascript:alert(1)"
    theirs.mkdir()
    row = '{"dataset": "d", "model": "m", "method": "r", "id": "1"}\n'
    (theirs / "rows.jsonl").write_text(row)
    (theirs / "report.html").touch()
    page = page_of(folder)
    assert 'href="javascript:' not in page
    assert 'href="javascript%3Aalert%281%29/report.html"' in page


def test_questions_that_changed_come_first(tmp_path: Path) -> None:
    run = RunFolder.read(healthy(tmp_path))
    steps, followed = followed_questions(run)
    assert steps == [0, 5]
    assert followed[0].question == "Who owns house 1 ?"
    marks = [look.mark for look in followed[0].looks if look]
    assert marks == ["wrong", "right"]
    assert [look.link for look in followed[0].looks if look] == [
        "rollouts/val_000000.html#2",
        "rollouts/val_000005.html#2",
    ]
    assert followed_questions(run, most=2)[1] == followed[:2]


def test_steps_are_spread() -> None:
    assert spread([0, 1], 5) == [0, 1]
    assert spread(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert spread([1, 2, 3], 1) == [3]


def test_costs_and_times(tmp_path: Path) -> None:
    costs = {cost.name: cost.value for cost in costs_of(RunFolder.read(healthy(tmp_path)))}
    assert costs["time of iterations"] == "50.0 s"
    assert costs["tokens read from results"] == "51,200"
    assert [spent_time(s) for s in (1.25, 200, 7500)] == ["1.2 s", "3 min 20 s", "2 h 05 min"]


def test_commands_quote_the_folder(tmp_path: Path) -> None:
    run = RunFolder.read(healthy(tmp_path / "my run; rm -rf x"))
    for command in next_commands(run, state_of(run), "well"):
        assert "my run; rm -rf x'" in command.line


def test_imitation_is_not_judged_by_rewards(tmp_path: Path) -> None:
    folder = dead(tmp_path)
    write_metrics(folder, [{"step": step, "train/nll": 0.5} for step in range(6)])
    run = RunFolder.read(folder)
    assert verdict_of_run(run, bands_of(run)).grade == "well"
