"""Credit for single turns: what a search was worth, beside the reward of the whole rollout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from research_rl.agents.policy import LMPolicy
from research_rl.agents.types import Rollout


class Credit(ABC):
    """Values each turn of a rollout; ``batch.turn_rewards`` hands it to the algorithm."""

    @abstractmethod
    def turn_rewards(self, rollouts: Sequence[Rollout], policy: LMPolicy) -> list[list[float]]:
        """Return one number for each turn of each rollout, in the order of ``rollout.turns``.

        Args:
            rollouts: whole groups of an iteration, of this rank.
            policy: as it is before the update, on its device; called without gradients.
        """
