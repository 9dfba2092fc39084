"""Collecting keeps what is worth imitating, counts the rest, and goes on after a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles.sample_rollouts import rollout

from research_rl.agents.types import ModelUnavailable, Rollout, TextOnly
from research_rl.envs import Question
from research_rl.envs.types import Reward
from research_rl.trainers.demonstrations.collect import ASKED, ROLLOUTS, Collection, collect
from research_rl.trainers.demonstrations.data import read_rollouts
from research_rl.trainers.demonstrations.keep import Keep
from research_rl.trainers.demonstrations.sources import SERVER_FAILED

QUESTIONS = [Question(f"q{n}", f"Who is number {n} ?", ("Domlor",)) for n in range(10)]
SETTINGS = {"from": "test"}


class Plays:
    """Every third question is answered wrongly, every fourth cannot be played; may be killed."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.calls = 0
        self.dies_at = dies_at

    def __call__(self, questions: Sequence[Question], sample: int) -> list[Rollout | str]:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        return [self._one(question) for question in questions]

    def _one(self, question: Question) -> Rollout | str:
        number = int(question.id[1:])
        if number % 4 == 3:
            return "it cannot be played"
        verdict: Any = "wrong" if number % 3 == 0 else "right"
        return replace(rollout(verdict), question=question, sequence=TextOnly())


def run(folder: Path, source: Plays, **how: Any) -> dict[str, Any]:
    return collect(source, QUESTIONS, folder, Collection(batch_size=3, **how), SETTINGS)


def test_what_is_kept_and_what_is_not_and_why(tmp_path: Path) -> None:
    card = run(tmp_path, Plays())
    kept = [one.question.id for one in read_rollouts(tmp_path / ROLLOUTS)]
    assert kept == ["q1", "q2", "q4", "q5", "q8"]
    assert card["demonstrations"] == card["with_a_demonstration"] == 5
    assert card["thrown_away"] == {"its reward is below 0.5": 3, "it cannot be played": 2}
    assert "| it cannot be played | 2 |" in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize("dies_at", [1, 2, 3, 4])
def test_a_killed_run_goes_on_to_the_same_files(tmp_path: Path, dies_at: int) -> None:
    run(tmp_path / "whole", Plays())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Plays(dies_at))
    run(tmp_path / "killed", Plays())
    for name in (ROLLOUTS, ASKED, "card.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_the_journal_does_not_count_is_cut_off(tmp_path: Path) -> None:
    run(tmp_path / "whole", Plays())
    folder = tmp_path / "torn"
    with pytest.raises(KeyboardInterrupt):
        run(folder, Plays(3))
    with (folder / ROLLOUTS).open("ab") as file:
        file.write(b'{"question_id": "half')
    with (folder / ASKED).open("ab") as file:
        file.write(b'{"id": "q')
    run(folder, Plays())
    assert (folder / ROLLOUTS).read_bytes() == (tmp_path / "whole" / ROLLOUTS).read_bytes()


def test_it_stops_when_there_are_enough(tmp_path: Path) -> None:
    source = Plays()
    card = run(tmp_path, source, wanted=2)
    assert (card["demonstrations"], card["asked"], source.calls) == (2, 3, 1)


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Plays())
    with pytest.raises(ValueError, match=r"begun with other settings \(from\)"):
        collect(Plays(), QUESTIONS, tmp_path, Collection(), {"from": "elsewhere"})


def test_equal_samples_are_one_demonstration(tmp_path: Path) -> None:
    card = run(tmp_path, Plays(), samples=3, keep=Keep(each=3))
    assert card["demonstrations"] == 5
    assert card["thrown_away"]["another rollout of the question is better, or the same"] == 10


@pytest.mark.parametrize(
    ("one", "keep", "reason"),
    [
        (rollout(), Keep(), None),
        (rollout("wrong"), Keep(), "its reward is below 0.5"),
        (rollout("wrong"), Keep(min_reward=0.0, right=True), "its answer is not right"),
        (rollout("format"), Keep(), "it ended without an answer (no_answer)"),
        (rollout(), Keep(max_searches=0), "it searches more than 0 times"),
        (rollout(), Keep(min_searches=2), "it searches less than 2 times"),
        (replace(rollout(), queries=["a b", "A  b"]), Keep(), "it repeats a query"),
        (replace(rollout(), queries=["a b", "A  b"]), Keep(repeats=True), None),
        (
            replace(rollout(), reward=Reward(1.0, 1.0, 1.0, "text behind the answer")),
            Keep(),
            "its form: text behind the answer",
        ),
    ],
)
def test_reasons(one: Rollout, keep: Keep, reason: str | None) -> None:
    assert keep.reason_against(one) == reason


def test_the_best_are_kept() -> None:
    many = [replace(rollout(), queries=["a", "b"], turns=["x", "y"]), rollout()]
    best, more = Keep().best(many)
    assert (best, more) == ([many[1]], 1)


def test_a_line_that_is_no_rollout_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text(json.dumps(rollout().to_row()) + "\n[1]\n")
    with pytest.raises(ValueError, match=r"rollouts\.jsonl:2: a rollout must be a JSON object"):
        list(read_rollouts(file))
    with pytest.raises(FileNotFoundError, match="research collect"):
        list(read_rollouts(tmp_path / "none.jsonl"))


class Served(Plays):
    """A server that does not answer these questions."""

    def __init__(self, *silent: str) -> None:
        super().__init__()
        self.silent = silent

    def _one(self, question: Question) -> Rollout | str:
        return SERVER_FAILED if question.id in self.silent else super()._one(question)


def test_what_a_server_did_not_answer_is_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = run(tmp_path, Served("q1", "q5"))
    assert card["asked"] == 8
    assert "2 questions had no answer from the server" in caplog.text

    card = run(tmp_path, Plays())
    assert card["asked"] == 10
    kept = {one.question.id for one in read_rollouts(tmp_path / ROLLOUTS)}
    assert kept == {"q1", "q2", "q4", "q5", "q8"}


def test_a_server_that_answers_nothing_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="some of 3 questions, got an answer to none"):
        run(tmp_path, Served("q3", "q4", "q5"))
    assert run(tmp_path, Plays())["demonstrations"] == 5, "what was kept before is kept"


def test_a_folder_of_before_goes_on_and_knows_more_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def go(settings: dict[str, Any], url: str) -> None:
        collect(Plays(), QUESTIONS, tmp_path, Collection(), settings, {"url": url})

    run(tmp_path, Plays())  # it knew neither questions nor url
    now = SETTINGS | {"questions_content": "1", "seed": 3}
    go(now, "http://a/v1")
    assert json.loads((tmp_path / "settings.json").read_text()) == now | {"url": "http://a/v1"}
    with pytest.raises(ValueError, match=r"other settings \(questions_content, seed\)"):
        go(now | {"questions_content": "2", "seed": 4}, "http://a/v1")
    with pytest.raises(ValueError, match=r"other settings \(samples\)"):
        go(now | {"samples": 2}, "http://a/v1")
    assert not caplog.messages

    go(now, "http://b/v1")  # a server that has moved
    assert "url was http://a/v1, is http://b/v1" in caplog.text
    assert json.loads((tmp_path / "settings.json").read_text())["url"] == "http://b/v1"
    assert "url" not in (tmp_path / "card.json").read_text()
