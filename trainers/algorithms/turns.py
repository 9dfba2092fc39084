"""Advantages of single turns: the rollout's outcome plus the credit of each search.

With InformationGain, of two searches in a right rollout the one that found the fact gets the larger
advantage.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from research_rl.trainers.algorithms.advantages import group_turn_rewards, turn_returns
from research_rl.trainers.algorithms.base import check_not_negative
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.algorithms.grpo import GRPO


class TurnGRPO(GRPO):
    """GRPO plus a credit for each turn, which ``model.credit`` gives.

    For turn k of rollout i, ``A = A_i + turn_coef * sum over j >= k of turn_discount^(j - k) *
    c_ij``. ``A_i`` is the advantage of GRPO. ``c_ij`` is the credit of turn j, normalised over all
    turns of the group that have one, or as it is; a turn without a credit adds 0.

    With InformationGain this is the rule of IGPO (https://arxiv.org/abs/2510.14967), normalised as
    in its code with ``info_gain_norm_mode: separate``; the paper's formula normalises outcome and
    gains together. With StepGroups, ``turn_discount: 0`` and ``normalize_turns: false`` it is
    GiGPO (https://arxiv.org/abs/2505.10978).

    Args:
        turn_coef: weight of the credits.
        turn_discount: factor of the credit of each later turn; 0 counts a turn's own credit only.
        normalize_turns: subtract the mean of all turns of the group that have a credit, and divide
            by their std.
        options: those of GRPO.
    """

    def __init__(
        self,
        turn_coef: float = 1.0,
        turn_discount: float = 1.0,
        normalize_turns: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.turn_coef = check_not_negative("turn_coef", turn_coef)
        self.turn_discount = check_not_negative("turn_discount", turn_discount)
        self.normalize_turns = normalize_turns

    def advantages(self, batch: Batch) -> Tensor:
        """Return the advantage of each token, the same on all tokens of a turn, (B, T).

        Raises:
            ValueError: turns have no credit, or every rollout is alone in its group.
        """
        credit = batch.turn_rewards
        if credit is None:
            raise ValueError(
                "turn rewards must be there for TurnGRPO, got none; set model.credit, to "
                "research_rl.trainers.credit.InformationGain for instance"
            )
        if self.normalize_turns:
            credit = group_turn_rewards(
                credit,
                batch.turns,
                batch.groups,
                batch.turn_valued,
                scale_by_std=self.scale_by_std,
            )
        later = turn_returns(credit, batch.turns, self.turn_discount)
        return super().advantages(batch)[:, None] * batch.loss_mask + self.turn_coef * later
