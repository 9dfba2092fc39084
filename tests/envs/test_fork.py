"""A fork goes on as its original would, and neither hears of the other."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
from doubles.toy_world import QUESTIONS, Echo, answer, search
from gymnasium.utils.env_checker import check_env

from research_rl.envs import Episode, ReSearchEnv, ReSearchVectorEnv, Transcript, fork


def played(env: gym.Env[Any, Any], *actions: str) -> list[Any]:
    return [env.step(action) for action in actions]


def make(**settings: Any) -> gym.Env[Any, Any]:
    return gym.make(
        "research_rl.envs:ReSearch-v0", questions=QUESTIONS, index=Echo(), top_k=2, **settings
    )


def test_a_fork_equals_the_original_s_continuation() -> None:
    env = make()
    env.reset(seed=4)
    env.step(search("house 1"))
    twin = fork(env)
    rest = (search("house 2"), answer("Owner 4"))
    assert played(twin, *rest) == played(env, *rest)
    assert twin.reset() == env.reset(), "the same questions come next"


def test_a_fork_is_independent() -> None:
    env = make().unwrapped
    assert isinstance(env, ReSearchEnv)
    env.reset(seed=4)
    env.step(search("house 1"))
    before = (list(env.episode.turns), list(env.episode.results), list(env.episode.passages[0]))
    twin = env.fork()
    twin.step(search("house 2"))
    twin.episode.keep_passages(1)
    twin.step(answer("nobody"))
    assert twin.episode.done
    assert not env.episode.done
    assert (env.episode.turns, env.episode.results, env.episode.passages[0]) == before
    assert twin.task is env.task, "questions and retriever are shared"
    twin.reset()
    assert env.episode.num_searches == 1


def test_a_fork_of_an_episode_that_shows_less_does_not_reach_back() -> None:
    env = make().unwrapped
    assert isinstance(env, ReSearchEnv)
    env.reset(seed=0)
    env.step(search("house 1"))
    twin = env.episode.fork()
    assert isinstance(twin, Episode)
    twin.keep_passages(1)
    assert [len(env.episode.passages[0]), len(twin.passages[0])] == [2, 1]
    assert env.episode.results != twin.results


def test_wrappers_keep_their_state() -> None:
    env = Transcript(make(max_episode_steps=2))
    env.reset(seed=1)
    env.step(search("house 1"))
    twin = fork(env)
    seen, _, _, truncated, _ = twin.step(search("house 2"))
    assert "house 1" in seen, "the transcript went with it"
    assert truncated, "and so did the count of turns"
    seen, _, _, truncated, _ = env.step(search("house 3"))
    assert "house 2" not in seen
    assert truncated


def test_before_the_first_reset() -> None:
    twin = make().unwrapped
    assert isinstance(twin, ReSearchEnv)
    assert twin.fork().reset(seed=3) == make().reset(seed=3)


def test_another_environment_is_refused() -> None:
    with pytest.raises(TypeError, match="copies ReSearch-v0, got CartPole"):
        fork(gym.make("CartPole-v1"))


def test_rows_of_the_vector_environment() -> None:
    env = ReSearchVectorEnv(
        3, "Disabled", 4, questions=QUESTIONS, index=Echo(), top_k=1, max_searches=3
    )
    env.reset(options={"questions": QUESTIONS[:3]})
    env.step([search("a"), search("b"), answer("Owner 2")])
    twin = env.fork([1, 1, 2])
    step = twin.step([search("c"), answer("Owner 1"), None])
    assert list(step[1]) == [0.0, 1.0, 0.0]
    assert [e.queries for e in twin.episodes] == [["b", "c"], ["b"], []]
    assert [e.queries for e in env.episodes] == [["a"], ["b"], []]
    again = env.fork([0, 1, 2]).step([search("x"), search("y"), search("z")])
    direct = env.step([search("x"), search("y"), search("z")])
    assert again[0] == direct[0]
    assert again[4].keys() == direct[4].keys()


@pytest.mark.parametrize("rows", [[], [3], [-1]])
def test_rows_that_are_not_there(rows: list[int]) -> None:
    env = ReSearchVectorEnv(3, questions=QUESTIONS, index=Echo())
    with pytest.raises(ValueError, match="rows must name at least one row from 0 to 2"):
        env.fork(rows)


def test_a_fork_passes_gymnasium_s_check() -> None:
    env = make().unwrapped
    assert isinstance(env, ReSearchEnv)
    env.reset(seed=0)
    check_env(env.fork(), skip_render_check=True)
