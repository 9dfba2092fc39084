"""ReSearch-v0 in each dialect is an environment of Gymnasium, alone, in batches and copied."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import gymnasium as gym
import pytest
from doubles.dialect_turns import NAMES, SEVERAL, answering, searching
from doubles.toy_world import ROWS, Echo, same
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from research_rl.envs.protocols import TagProtocol


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version.*")
@pytest.mark.parametrize("name", NAMES)
def test_each_dialect_is_an_environment(name: str) -> None:
    check_env(gym.make("ReSearch-v0", protocol=name, render_mode="ansi"), skip_render_check=True)


def played(env: Any, name: str, steps: int = 30) -> list[Any]:
    choose = random.Random(name)
    turns = [
        searching(name, "a"),
        searching(name, "\udfff é 世界"),
        searching(name, *"ab"[: 2 if name in SEVERAL else 1]),
        searching(name, ""),
        "<tool_call>x</tool_call>",
        "words",
        "",
        *(answering(name, f"Owner {i}") for i in range(4)),
    ]
    outputs = [env.reset(seed=[4, 4, 9], options={"opened": ("<think>", "<think>")})]
    for _ in range(steps):
        outputs.append(env.step(tuple(choose.choice(turns) for _ in range(3))))
    env.close()
    return outputs


SETTINGS: dict[str, Any] = {
    "questions": ROWS,
    "index": Echo("{query} \ud800 (第 {rank})"),
    "top_k": 2,
    "max_searches": 3,
    "max_episode_steps": 5,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_batched_and_sync_agree_in_each_dialect(name: str, mode: AutoresetMode) -> None:
    batched = gym.make_vec("ReSearch-v0", 3, autoreset_mode=mode, protocol=name, **SETTINGS)
    sync = gym.make_vec(
        "ReSearch-v0",
        3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        protocol=name,
        **SETTINGS,
    )
    assert batched.metadata == sync.metadata
    for one, two in zip(played(batched, name), played(sync, name), strict=True):
        assert same(one, two)


@pytest.mark.parametrize("name", ["o2", "hermes"])
def test_batched_and_async_agree(name: str) -> None:
    batched = gym.make_vec("ReSearch-v0", 3, protocol=name, **SETTINGS)
    parallel = gym.make_vec("ReSearch-v0", 3, vectorization_mode="async", protocol=name, **SETTINGS)
    for one, two in zip(played(batched, name), played(parallel, name), strict=True):
        assert same(one, two)


class Own(TagProtocol):
    """Two queries a turn, a line each."""

    max_queries = 2

    def queries_in(self, asked: str) -> tuple[str, ...]:
        """Return the lines."""
        return tuple(line.strip() for line in asked.strip().splitlines()) or ("",)


def test_a_protocol_of_one_s_own_is_copied_with_its_environment() -> None:
    env = gym.make("ReSearch-v0", protocol=Own(), index=Echo(), top_k=1, questions=ROWS)
    assert env.spec is not None
    for spec in (env.spec, copy.deepcopy(env.spec), pickle.loads(pickle.dumps(env.spec))):
        twin: Any = gym.make(spec)
        twin.reset(seed=1)
        text = twin.step("<think> t </think> <search> a\nb </search>")[0]
        assert text == (" <result>\na\nhouse\nfound a (0)\n\nb\nhouse\nfound b (0)\n</result>")
