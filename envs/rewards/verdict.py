"""The verdict of a reward, checked: what is no verdict that a policy can be paid by is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from research_rl.envs.protocols import Segment
from research_rl.envs.rewards.presets import RewardFunction
from research_rl.envs.types import Passage, Question, Reward


def judged(
    reward: RewardFunction,
    segments: Sequence[Segment],
    question: Question,
    passages: Sequence[Sequence[Passage]] = (),
) -> Reward:
    """Return the verdict of a reward function if it is one that a policy can be paid by.

    Raises:
        ValueError: it raised, did not return a Reward, or a number in it is not finite.
    """
    name = f"the reward {type(reward).__module__}.{type(reward).__qualname__}"
    asked = f"for question {question.id!r}"
    try:
        verdict: Any = reward.judge(segments, question, passages)
    except Exception as error:
        raise ValueError(
            f"{name} must not raise on any text, got {type(error).__name__}: {error} {asked}; "
            "`research lint-reward` tries it on many texts"
        ) from error
    if not isinstance(verdict, Reward):
        raise ValueError(
            f"{name} must return a Reward, got {verdict!r} of type {type(verdict).__name__} "
            f"{asked}; return Reward(value, f1=..., em=...)"
        )
    for field in ("value", "f1", "em"):
        number = getattr(verdict, field)
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ValueError(
                f"{name} must return a Reward whose {field} is a finite number, got {number!r} "
                f"{asked}"
            )
    return verdict
