"""A reward by its name, by its terms or as it is.

``get_reward("em")`` is the preset, ``get_reward({"terms": {"answer": 0.8, "evidence": 0.2}})`` the
sum of two terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from research_rl.envs.protocols import RESEARCH, Protocol
from research_rl.envs.rewards.presets import (
    CoverReward,
    DefaultReward,
    ExactMatchReward,
    PaperCodeReward,
    PaperReward,
    RewardFunction,
)
from research_rl.envs.rewards.terms import RewardTerms
from research_rl.envs.system import did_you_mean

PRESETS = ("default", "paper", "paper-code", "em", "cover")
"""The rewards that have a name."""


def get_reward(
    reward: str | RewardFunction | Mapping[str, Any],
    chat: bool = False,
    protocol: Protocol = RESEARCH,
) -> RewardFunction:
    """Return the preset of this name, or the function itself, for responses of a protocol.

    Args:
        reward: one of PRESETS, a RewardFunction, or the arguments of RewardTerms.
        chat: whether the prompt is a chat prompt (only ``paper-code`` depends on it).
        protocol: the language of the responses.

    Raises:
        ValueError: no preset has this name, it does not know the protocol, or terms make no sense.
    """
    if isinstance(reward, Mapping):
        return _of_terms(reward).speaking(protocol)
    if isinstance(reward, RewardFunction):
        return reward.speaking(protocol)
    made: RewardFunction
    match reward:
        case "default":
            made = DefaultReward()
        case "paper":
            made = PaperReward()
        case "paper-code":
            made = PaperCodeReward(chat)
        case "em":
            made = ExactMatchReward()
        case "cover":
            made = CoverReward()
        case _:
            hint = did_you_mean(reward, list(PRESETS), quoted=True) or "; or give a RewardFunction"
            raise ValueError(f"reward must be one of {list(PRESETS)}, got {reward!r}{hint}")
    return made.speaking(protocol)


def _of_terms(given: Mapping[str, Any]) -> RewardTerms:
    known = ("terms", "low", "high", "gated")
    if "terms" not in given or not isinstance(given["terms"], Mapping) or set(given) - set(known):
        raise ValueError(
            f"a reward of terms must be a mapping of {', '.join(known)}, terms being a mapping of "
            f"its own, got {dict(given)!r:.200}"
        )
    return RewardTerms(**given)
