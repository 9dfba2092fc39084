"""Rewards and retrievers of one's own that break their contract are named where they are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from research_rl.envs.protocols import Segment
from research_rl.envs.rewards.presets import RewardFunction
from research_rl.envs.types import Passage, Question, Retriever, Reward, search_checked

QUESTION = Question("q7", "Where is it?", ("here",))
ONE = Passage("1", "a title\na body")


class OwnReward(RewardFunction):
    """Returns what it is made with, or raises it."""

    def __init__(self, verdict: Any) -> None:
        self.verdict = verdict

    def __call__(self, segments: Sequence[Segment], question: Question) -> Reward:
        """Return or raise it."""
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict  # type: ignore[no-any-return]


class OwnRetriever(Retriever):
    """Returns what a function makes of the queries."""

    def __init__(self, found: Callable[[Sequence[str], int], Any]) -> None:
        self.found = found

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return it."""
        return self.found(queries, k)  # type: ignore[no-any-return]


def answered(reward: RewardFunction, vector: bool) -> Any:
    """Reward of an answer, from the single environment or the one of many rows."""
    settings = {"index": OwnRetriever(lambda q, k: [[]]), "reward": reward}
    turn = r"<think>x</think><answer>\boxed{here}</answer>"
    if vector:
        many = gym.make_vec("ReSearch-v0", num_envs=2, **settings)
        many.reset(options={"question": QUESTION})
        return many.step([turn, turn])[1][0]  # type: ignore[arg-type]
    one = gym.make("ReSearch-v0", disable_env_checker=True, **settings)
    one.reset(options={"question": QUESTION})
    return one.step(turn)[1]


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Reward(float("nan")), "value is a finite number, got nan"),
        (Reward(1.0, f1=float("inf")), "f1 is a finite number, got inf"),
        (Reward("1"), "value is a finite number, got '1'"),  # type: ignore[arg-type]
        (None, "must return a Reward, got None"),
        (0.5, "must return a Reward, got 0.5 of type float"),
        (KeyError("hops"), "must not raise on any text, got KeyError: 'hops'"),
    ],
)
def test_a_reward_that_nobody_can_be_paid_by_is_named(
    verdict: Any, said: str, vector: bool
) -> None:
    with pytest.raises(ValueError, match=r"test_contracts\.OwnReward") as error:
        answered(OwnReward(verdict), vector)
    assert said in str(error.value)
    assert "question 'q7'" in str(error.value)


def test_a_number_of_numpy_pays() -> None:
    paid: Any = np.float32(0.5)
    assert answered(OwnReward(Reward(paid)), vector=True) == 0.5


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda q, k: None, "one list of passages for each of 2 queries, got None"),
        (lambda q, k: [[ONE]], "one list of passages for each of 2 queries, got 1"),
        (lambda q, k: [[ONE], None], "at most 3 passages for each query, got None for the query"),
        (lambda q, k: [[ONE] * 4, []], "got 4 passages for the query 'a'"),
        (lambda q, k: [["text"], []], "got a value of type str for the query 'a'"),
        (lambda q, k: ["text", []], "got a value of type str for the query 'a'"),
        (lambda q, k: {"a": []}, "got a value of type dict"),
    ],
)
def test_a_retriever_that_breaks_its_contract_is_named(
    found: Callable[[Sequence[str], int], Any], said: str
) -> None:
    with pytest.raises(ValueError, match=r"test_contracts\.OwnRetriever\.search must") as error:
        search_checked(OwnRetriever(found), ["a", "b"], 3)
    assert said in str(error.value)


def test_the_environment_checks_what_it_shows() -> None:
    many = gym.make_vec("ReSearch-v0", num_envs=1, index=OwnRetriever(lambda q, k: [None]), top_k=2)
    many.reset(options={"question": QUESTION})
    with pytest.raises(ValueError, match="at most 2 passages for each query, got None"):
        many.step(["<think>x</think><search>a</search>"])  # type: ignore[arg-type]


def test_fewer_and_none_are_fine() -> None:
    assert search_checked(OwnRetriever(lambda q, k: ((ONE,), ())), ["a", "b"], 3) == [(ONE,), ()]
