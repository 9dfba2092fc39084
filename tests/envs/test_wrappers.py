"""Transcript shows everything written so far."""

from __future__ import annotations

import pickle

import gymnasium as gym
import pytest
from doubles.toy_world import ROWS, Echo, answer, search
from gymnasium.utils.env_checker import check_env

from research_rl.envs import Transcript, UnicodeText


def make(max_chars: int = 262144) -> Transcript:
    return Transcript(gym.make("ReSearch-v0", questions=ROWS, index=Echo()), max_chars)


def test_the_transcript_grows_by_action_and_observation() -> None:
    env, plain = make(), gym.make("ReSearch-v0", questions=ROWS, index=Echo())
    text = env.reset(seed=1)[0]
    assert text == plain.reset(seed=1)[0]
    for turn in (search("\ud800 a"), answer("Owner")):
        step, bare = env.step(turn), plain.step(turn)
        text += turn + bare[0]
        assert step == (text, *bare[1:])
        assert text in env.observation_space
    assert env.reset(seed=1)[0] == plain.reset(seed=1)[0]


def test_a_long_transcript_keeps_its_end() -> None:
    env = make(max_chars=50)
    text = env.reset(seed=1)[0]
    assert env.observation_space == UnicodeText(50)
    assert len(text) == 50
    assert env.step(search("a"))[0].endswith("</result>")


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped")
def test_it_is_checked_pickled_and_rebuilt_from_its_spec() -> None:
    env = make(max_chars=5000)
    check_env(env, skip_render_check=True)
    env.reset(seed=1)
    twin = pickle.loads(pickle.dumps(env))
    assert twin.step(search("a")) == env.step(search("a"))
    assert env.spec is not None
    again = gym.make(env.spec)
    assert isinstance(again, Transcript)
    assert again.observation_space == UnicodeText(5000)


def test_it_runs_in_parallel() -> None:
    env = gym.make_vec(
        "ReSearch-v0",
        num_envs=2,
        vectorization_mode="async",
        wrappers=[Transcript],
        questions=ROWS,
        index=Echo(),
    )
    first = env.reset(seed=[1, 1])[0]
    observations = env.step((search("a"), search("b")))[0]
    assert observations[0].startswith(first[0] + search("a") + " <result>")
    assert observations[1].startswith(first[1] + search("b") + " <result>")
    env.close()
