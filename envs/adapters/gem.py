"""ReSearch-v0 as an environment of GEM (axon-rl, gem-llm on PyPI); importing it registers it.

``gem.make("research:ReSearch-v0", questions=..., index=...)`` takes the arguments of ReSearch-v0.
Written for gem-llm 0.1.0.
"""

from __future__ import annotations

from typing import Any

from research_rl.envs.adapters.missing import missing_library
from research_rl.envs.env import ReSearchEnv

try:
    from gem import Env, register
    from gem.envs.registration import ENV_REGISTRY
except ModuleNotFoundError as error:
    if error.name != "gem":
        raise
    raise missing_library("gem", "pip install gem-llm==0.1.0") from error

ENV_ID = "research:ReSearch-v0"


class ReSearchGem(Env):  # type: ignore[misc]
    """ReSearch-v0 with GEM's methods: an action is the text of a turn.

    Args:
        seed: of the first reset that is given none; ``gem.make_vec`` gives each row its own.
        kwargs: arguments of ReSearch-v0.
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__()
        self._seed = seed
        self._kwargs = kwargs
        self._env = ReSearchEnv(**kwargs)

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode; return the prompt. Equal seeds ask equal questions."""
        first, self._seed = self._seed, None
        return self._env.reset(seed=first if seed is None else seed)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play a turn; see ReSearchEnv.step."""
        return self._env.step(action)

    def sample_random_action(self) -> str:
        """Return a turn that searches for random words."""
        protocol, words = self._env.protocol, self._env.action_space.sample().strip()
        opened = self._env.task.rules.opened.first
        return protocol.search(protocol.escape(words), thought="t", opened=opened)

    def spawn(self, same_state: bool = False, **kwargs: Any) -> ReSearchGem:
        """Return another environment of the same arguments, or a copy as this one stands.

        Raises:
            ValueError: a copy is asked for with other arguments.
        """
        if same_state and kwargs:
            raise ValueError(f"same_state=True copies the arguments too, got {sorted(kwargs)}")
        twin = ReSearchGem(**{**self._kwargs, **kwargs})
        if same_state:
            twin._env, twin._seed = self._env.fork(), self._seed
        return twin


if ENV_ID not in ENV_REGISTRY:
    register(ENV_ID, "research_rl.envs.adapters.gem:ReSearchGem")
