"""Wrappers for ReSearch-v0, and copies of an environment with all its wrappers.

``Transcript(gym.make("ReSearch-v0"))`` observes the whole text so far, prompt included.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs

from research_rl.envs.env import ReSearchEnv
from research_rl.envs.spaces import UnicodeText


class Transcript(gym.Wrapper[str, str, str, str], RecordConstructorArgs):
    """Observe the whole transcript so far, prompt and actions included, instead of its last part.

    Args:
        env: the environment to wrap.
        max_chars: longest observation in characters; a longer transcript loses its beginning.
    """

    def __init__(self, env: gym.Env[str, str], max_chars: int = 262144) -> None:
        RecordConstructorArgs.__init__(self, max_chars=max_chars)
        gym.Wrapper.__init__(self, env)
        self.observation_space = UnicodeText(max_chars)
        self._max_chars = max_chars
        self._text = ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin an episode; return its prompt."""
        self._text, info = self.env.reset(seed=seed, options=options)
        return self._seen(), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play a turn; return everything written so far."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._text += str(action) + observation
        return self._seen(), float(reward), terminated, truncated, info

    def _seen(self) -> str:
        return self._text[-self._max_chars :]


def fork(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Return an independent copy of ReSearch-v0 as it stands, with its wrappers and their state.

    The same actions give the same observations in both, and neither is changed by the other's.
    Questions, retriever and rules are shared.

    Raises:
        TypeError: another environment is inside.
    """
    base = env.unwrapped
    if not isinstance(base, ReSearchEnv):
        raise TypeError(f"fork() copies ReSearch-v0, got {type(base).__name__}")
    memo: dict[int, Any] = {id(base): base.fork()}
    layer = env
    while isinstance(layer, gym.Wrapper):  # a wrapper keeps the spec, whose arguments may be large
        cached = layer._cached_spec
        memo[id(cached)] = cached
        layer = layer.env
    return deepcopy(env, memo)
