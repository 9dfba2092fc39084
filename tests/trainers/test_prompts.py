"""Every prompt is measured before the first step; one that is too long is named or left out.

Questions with words that the model cannot read are counted in a warning.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles import training, wordy

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.policy.loading import PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.envs.types import Question
from research_rl.trainers.data import Role
from research_rl.trainers.prompts import warn_of_unknown_words

BUDGET = 24


class OneIsLong(training.Data):
    """The built-in world's questions, of which those of ``role`` have one of ``tokens`` tokens."""

    def __init__(self, role: str, tokens: int, **options: Any) -> None:
        super().__init__()
        self.role, self.tokens = role, tokens
        self.max_prompt_tokens = options.get("max_prompt_tokens")

    def questions(self, role: Role) -> list[Question]:
        """Return them; a token is a byte."""
        few = training.questions()
        if role == self.role:
            few[5] = replace(few[5], id="the long one", text="x" * self.tokens)
        return few


@pytest.fixture(scope="module")
def room(policy: Path) -> int:
    """Tokens that a prompt may have."""
    positions = LMPolicy.from_config(PolicyConfig(str(policy))).max_length
    assert positions is not None
    return positions - BUDGET


@pytest.mark.parametrize("role", ["train", "val"])
def test_a_prompt_that_is_too_long_ends_the_run_before_its_first_step(
    policy: Path, room: int, tmp_path: Path, role: str
) -> None:
    trained = training.module(policy)
    with pytest.raises(ValueError, match=f"prompts of data.{role}") as error:
        training.trainer(tmp_path, 1).fit(trained, OneIsLong(role, 2 * room))
    said = str(error.value)
    assert "got 1 of 8 longer ones: the long one (" in said
    assert f"set data.max_prompt_tokens to {room}" in said
    assert "lower model" not in said  # it would have to be lower than nothing
    assert trained.train_rollouts == []


def test_what_the_message_advises_lets_the_run_go(
    policy: Path, room: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = OneIsLong("train", 2 * room, max_prompt_tokens=room)
    trainer = training.trainer(tmp_path, 4, limit_val_batches=0)
    trainer.fit(training.module(policy), data)
    assert trainer.global_step == 4  # of two questions each: all there are
    assert "1 of 8 questions are left out, for their prompts have more than data.max_p" in (
        caplog.text
    )
    assert "the long one (" in caplog.text


def test_a_smaller_budget_is_advised_where_it_helps(
    policy: Path, room: int, tmp_path: Path
) -> None:
    data = OneIsLong("train", room - 10)  # the frame of the prompt is longer than ten
    with pytest.raises(ValueError, match=r"lower model\.sampling.max_response_tokens to ") as error:
        training.trainer(tmp_path, 1, limit_val_batches=0).fit(training.module(policy), data)
    advised = int(str(error.value).split("max_response_tokens to ")[1].split()[0])
    assert 0 < advised < BUDGET
    shorter = replace(training.module(policy).sampling, max_response_tokens=advised)
    trained = training.module(policy, sampling=shorter)
    training.trainer(tmp_path, 1, limit_val_batches=0).fit(trained, data)
    assert trained.iteration == 1


def test_no_question_left_is_an_error(policy: Path, tmp_path: Path) -> None:
    data = OneIsLong("train", 10, max_prompt_tokens=1)
    with pytest.raises(ValueError, match=r"must leave at least one question of data\.train, got 1"):
        training.trainer(tmp_path, 1, limit_val_batches=0).fit(training.module(policy), data)


def test_a_budget_beyond_the_positions_is_named(policy: Path, room: int, tmp_path: Path) -> None:
    much = replace(training.module(policy).sampling, max_response_tokens=room + BUDGET)
    trained = training.module(policy, sampling=much)
    with pytest.raises(ValueError, match="max_response_tokens must be below the model's"):
        training.trainer(tmp_path, 1, limit_val_batches=0).fit(trained, training.Data())


class Narrow(CachedEngine):
    """Has fewer positions than the model, as a server may."""

    def room(self) -> int:
        """See Engine.room."""
        return 100


def test_the_positions_of_servers_count_where_they_are_fewer(policy: Path, tmp_path: Path) -> None:
    much = replace(training.module(policy).sampling, max_response_tokens=100)
    trained = training.module(policy, sampling=much, engine=Narrow)
    said = "max_response_tokens must be below the rollout servers' 100 positions.*--max-model-len"
    with pytest.raises(ValueError, match=said):
        training.trainer(tmp_path, 1).fit(trained, training.Data())
    trained = training.module(policy, engine=Narrow)
    said = f"leave {BUDGET} of the rollout servers' 100 positions .*the long one .*--max-model-len"
    with pytest.raises(ValueError, match=said):
        training.trainer(tmp_path, 1).fit(trained, OneIsLong("train", 90))
    assert trained.train_rollouts == []


def warned(texts: list[str], policy: LMPolicy, caplog: pytest.LogCaptureFixture) -> list[str]:
    questions = [Question(f"q{n}", text, ("a",)) for n, text in enumerate(texts)]
    with caplog.at_level(logging.WARNING):
        warn_of_unknown_words(questions, "data.val", policy)
    return caplog.messages


@pytest.fixture(scope="module")
def words() -> LMPolicy:
    return wordy.policy()


def test_questions_of_unknown_words_are_counted(
    words: LMPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    known = wordy.asked()[0]
    asked = [known, "Who directed Alien ?", known, "Who is it ?", "What is the boss ?", known]
    (said,) = warned(asked, words, caplog)
    assert said.startswith("data.val: 3 of 6 questions (50%) have words that the model reads as <u")
    assert '(q1: "directed" and "Alien"; q3: "it")' in said


def test_few_are_not_rounded_away(words: LMPolicy, caplog: pytest.LogCaptureFixture) -> None:
    (said,) = warned(["Alien", *["Who is"] * 999], words, caplog)
    assert said.startswith("data.val: 1 of 1000 questions (under 1%) have")


def test_the_quickstarts_questions_are_all_known(
    words: LMPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    assert warned(wordy.asked(), words, caplog) == []


def test_a_run_tells_of_both_its_sets(
    words: LMPolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words.save_pretrained(tmp_path / "policy")
    trained = training.module(tmp_path / "policy")
    training.trainer(tmp_path, 1).fit(trained, training.Data())
    told = [said for said in caplog.messages if "have words that the model reads as" in said]
    assert [said.partition(":")[0] for said in sorted(told)] == ["data.train", "data.val"]
