"""The batched environment agrees with Gymnasium's own vectorisation, and does more."""

from __future__ import annotations

import pickle
import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from doubles.toy_world import QUESTIONS, ROWS, Echo, Flaky, answer, same, search
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from research_rl.envs import ReSearchVectorEnv, RetrieverUnavailable

MODES = list(AutoresetMode)
SETTINGS: dict[str, Any] = {
    "questions": ROWS,
    "index": Echo("{query} \ud800 (第 {rank})"),
    "top_k": 2,
    "max_searches": 3,
    "max_episode_steps": 5,
}
TURNS = [
    search("a"),
    search("\udfff é 世界"),
    search("a b", thought="\ud800"),
    "</search>",
    "words",
    *(answer(f"Owner {i}") for i in range(9)),
]


def toy(num_envs: int = 3, **kwargs: Any) -> ReSearchVectorEnv:
    env = ReSearchVectorEnv(
        num_envs, **{"questions": QUESTIONS, "index": Echo(), "autoreset_mode": "Disabled"} | kwargs
    )
    env.reset(options={"questions": list(range(num_envs))})
    return env


def played(env: VectorEnv[Any, Any, Any], mode: AutoresetMode, steps: int) -> list[Any]:
    """Everything the environment says while it plays a fixed random script."""
    choose = random.Random(0)
    outputs: list[Any] = [env.reset(seed=[4, 4, 9])]
    for number in range(steps):
        actions = tuple(choose.choice(TURNS) for _ in range(3))
        outputs.append(env.step(actions))
        done = outputs[-1][2] | outputs[-1][3]
        if mode is AutoresetMode.DISABLED and done.any():
            outputs.append(env.reset(options={"reset_mask": done}))
        if number == 20:
            outputs.append(env.reset(seed=11))
    env.close()
    return outputs


@pytest.mark.parametrize("mode", MODES)
def test_batched_and_sync_agree_step_for_step(mode: AutoresetMode) -> None:
    batched = gym.make_vec("ReSearch-v0", num_envs=3, autoreset_mode=mode, **SETTINGS)
    sync = gym.make_vec(
        "ReSearch-v0",
        num_envs=3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        **SETTINGS,
    )
    assert isinstance(batched, ReSearchVectorEnv)
    assert isinstance(sync, SyncVectorEnv)
    assert batched.metadata == sync.metadata
    assert batched.observation_space == sync.observation_space
    assert batched.action_space == sync.action_space
    for one, two in zip(played(batched, mode, 60), played(sync, mode, 60), strict=True):
        assert same(one, two)


@pytest.mark.parametrize("mode", MODES)
def test_batched_and_async_agree_step_for_step(mode: AutoresetMode) -> None:
    batched = gym.make_vec("ReSearch-v0", num_envs=3, autoreset_mode=mode, **SETTINGS)
    parallel = gym.make_vec(
        "ReSearch-v0",
        num_envs=3,
        vectorization_mode="async",
        vector_kwargs={"autoreset_mode": mode},
        **SETTINGS,
    )
    assert isinstance(parallel, AsyncVectorEnv)
    for one, two in zip(played(batched, mode, 60), played(parallel, mode, 60), strict=True):
        assert same(one, two)


def test_a_step_searches_once_for_all_who_ask() -> None:
    retriever = Echo()
    env = toy(4, index=retriever)
    observations, *_ = env.step([search("a"), answer("x"), search("b"), "</search>"])
    assert retriever.calls == [["a", "b"]]
    assert "found a (0)" in observations[0]
    assert "found b (0)" in observations[2]
    env.step([answer("x"), None, None, None])
    assert len(retriever.calls) == 1


def test_none_leaves_a_row_as_it_is() -> None:
    env = toy()
    observations, rewards, terminated, _, infos = env.step([None, search("a"), None])
    assert (observations[0], rewards[0], terminated[0]) == ("", 0.0, False)
    assert infos["_query"].tolist() == [False, True, False]
    assert [len(episode.turns) for episode in env.episodes] == [0, 1, 0]


def test_a_finished_row_idles_without_autoreset() -> None:
    env = toy()
    env.step([answer("Owner 0"), search("a"), search("a")])
    observations, rewards, terminated, truncated, infos = env.step(["ignored", search("b"), None])
    assert (observations[0], rewards[0], terminated[0], truncated[0]) == ("", 0.0, False, False)
    assert not infos["_query"][0]
    assert env.episodes[0].turns == [answer("Owner 0")]


def test_rows_are_given_their_questions() -> None:
    env = toy()
    _, infos = env.reset(options={"questions": [QUESTIONS[5], ROWS[6], 7]})
    assert infos["question_id"].tolist() == ["q5", "q6", "q7"]
    mask = np.array([False, True, False])
    _, infos = env.reset(options={"questions": [None, 1, None], "reset_mask": mask})
    assert infos["_question_id"].tolist() == mask.tolist()
    assert [episode.question.id for episode in env.episodes] == ["q5", "q1", "q7"]
    _, infos = env.reset(options={"question": 8})
    assert infos["question_id"].tolist() == ["q8"] * 3


def test_a_group_is_a_list_of_equal_seeds() -> None:
    env = toy(6)
    _, infos = env.reset(seed=[3, 3, 3, 5, 5, 5])
    ids = infos["question_id"].tolist()
    assert ids[:3] == ids[:1] * 3
    assert ids[3:] == ids[3:4] * 3
    assert env.reset(seed=[3, 3, 3, 5, 5, 5])[1]["question_id"].tolist() == ids


def test_the_number_of_rows_can_change() -> None:
    env = toy()
    env.resize(5)
    with pytest.raises(gym.error.ResetNeeded):
        env.step([None] * 5)
    observations, _ = env.reset(options={"questions": range(5)})
    assert len(observations) == env.num_envs == len(env.observation_space.spaces) == 5
    assert observations in env.observation_space
    with pytest.raises(ValueError, match=r"resize\(2\)"):
        env.reset(options={"questions": [0, 1]})


def test_a_failed_search_changes_no_row() -> None:
    env, sound = toy(index=Flaky(1)), toy()
    actions = [search("a"), answer("Owner 1"), "words"]
    with pytest.raises(RetrieverUnavailable):
        env.step(actions)
    assert all(episode.turns == [] for episode in env.episodes)
    assert same(env.step(actions), sound.step(actions))


def test_a_failed_search_can_be_observed_by_all_who_asked() -> None:
    env = toy(index=Flaky(1), on_retriever_error="observe")
    observations, *_ = env.step([search("a"), search("b"), None])
    assert all("the search failed" in text for text in observations[:2])
    assert [episode.failed_results for episode in env.episodes] == [[0], [0], []]


def test_the_turn_budget_truncates_and_is_noted() -> None:
    env = toy(1, max_episode_steps=2)
    env.step([search("a")])
    observations, _, terminated, truncated, infos = env.step([search("b")])
    assert observations[0].startswith(" <result>")
    assert (terminated[0], truncated[0]) == (False, True)
    assert "finish_reason" not in infos
    assert env.episodes[0].finish_reason == "turn_budget"


def test_statistics_of_episodes_are_recorded() -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(
        gym.make_vec("ReSearch-v0", num_envs=2, questions=ROWS, index=Echo())
    )
    env.reset(seed=0, options={"question": 1})
    env.step([search("a"), answer("Owner 1")])
    infos = env.step([answer("Owner 1"), "begins anew"])[4]
    assert infos["episode"]["r"][0] == 1.0
    assert infos["episode"]["l"][0] == 2


def test_render_and_pickle() -> None:
    env = toy(2, render_mode="ansi")
    env.step([search("a"), None])
    shown = env.render()
    assert shown is not None
    assert "found a (0)" in shown[0]
    twin = pickle.loads(pickle.dumps(env))
    actions = [search("b"), answer("Owner 1")]
    assert same(twin.step(actions), env.step(actions))


def test_bad_calls_are_refused() -> None:
    env = toy()
    with pytest.raises(ValueError, match="actions must have one entry"):
        env.step(["x"])
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": np.zeros(3, bool)})
    with pytest.raises(ValueError, match="seed must have one entry"):
        env.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="num_envs"):
        env.resize(0)
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1, got 0"):
        toy(max_episode_steps=0)
    with pytest.raises(gym.error.ResetNeeded):
        ReSearchVectorEnv(2, index=Echo()).step(["x", "x"])
