"""Credit by counterfactual: how much the rest of a rollout depended on a search's result.

If the policy would have written the same without the result, the search earns nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from research_rl.agents import Rollout
from research_rl.agents.policy import LMPolicy
from research_rl.trainers.credit.search_effects import Target, emptied_results, logprob_effects
from research_rl.trainers.credit.turns import Credit, TurnRewards

Instead = Literal["nothing", "another"]


class CounterfactualCredit(Credit):
    """The part of a rollout's F1 that depended on each of its results.

    A turn that searched earns ``F1 * (1 - p(rest | other result) / p(rest | result))``, cut to
    [0, F1], where rest is what the policy wrote afterwards. This is the probability of necessity
    of https://doi.org/10.1017/CBO9780511803161 (chapter 9.2), with the policy's own
    probabilities. The credit is 0 if nothing depended on the result, or if the answer is wrong.
    The turn that answers has no credit.

    Costs two forward passes over the rollout for each result, without a gradient. Rollouts with
    an F1 of 0 cost nothing.

    Args:
        instead: what replaces the result: nothing (the block without passages) or another (a
            result of another question of the batch, the same one at every call).
        target: rest is all later turns of the policy, answer its last turn only. With answer,
            a result that only led to the next query earns little.
        micro_batch_tokens: tokens of one forward pass, padding included.

    Raises:
        ValueError: an unknown choice, or micro_batch_tokens below 1.
    """

    def __init__(
        self,
        instead: Instead = "nothing",
        target: Target = "rest",
        micro_batch_tokens: int = 16384,
    ) -> None:
        for name, value, known in (
            ("instead", instead, get_args(Instead)),
            ("target", target, get_args(Target)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if micro_batch_tokens < 1:
            raise ValueError(f"micro_batch_tokens must be at least 1, got {micro_batch_tokens}")
        self.instead, self.target = instead, target
        self.micro_batch_tokens = micro_batch_tokens

    def turn_rewards(self, rollouts: Sequence[Rollout], policy: LMPolicy) -> TurnRewards:
        """Return the credit of each turn; see Credit."""
        paid = [r for r in rollouts if r.reward.f1 > 0 and r.results]
        blocks = [self._instead(rollout, rollouts) for rollout in paid]
        tokens = self.micro_batch_tokens
        effects = logprob_effects(paid, policy, blocks, self.target, tokens)
        owed = {
            id(rollout): [rollout.reward.f1 * -math.expm1(-max(0.0, nats)) for nats in row]
            for rollout, row in zip(paid, effects, strict=True)
        }
        return [_padded(owed.get(id(r), [0.0] * len(r.results)), len(r.turns)) for r in rollouts]

    def _instead(self, rollout: Rollout, rollouts: Sequence[Rollout]) -> list[str]:
        """Return the block that replaces each result; without other questions, an empty one."""
        empty = emptied_results(rollout)
        if self.instead == "nothing":
            return empty
        others = [r for r in rollouts if r.question.id != rollout.question.id and r.results]
        if not others:
            return empty
        other = others[0].results
        return [other[turn % len(other)] for turn in range(len(rollout.results))]


def _padded(values: list[float], length: int) -> list[float | None]:
    """Add None for turns that are not followed by a result."""
    return [*values, *[None] * length][:length]
