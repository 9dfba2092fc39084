"""Rules that papers on search agents propose against collapse: LLDS, Search Agent PO, REINFORCE.

A right rollout of two turns whose second turn became less likely in an update: LLDS pulls the
tokens of that turn which fell back up, and leaves the first turn alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from research_rl.trainers.algorithms.advantages import above_batch_mean
from research_rl.trainers.algorithms.base import check_not_negative
from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.algorithms.grpo import GRPO
from research_rl.trainers.algorithms.losses import conditional_kl, fallen_likelihood
from research_rl.trainers.algorithms.policy_gradient import PolicyGradient


class LLDS(GRPO):
    """GRPO that holds the likelihood of good turns (https://arxiv.org/abs/2512.04220).

    Loss of a token: GRPO's ``+ held_coef * max(0, old - logp)`` where the advantage is not negative
    and the turn as a whole became less likely than before the update. With one update for each
    batch nothing has moved and it is GRPO. Groups of equal rewards are computed too, for their
    turns are held as well.

    Args:
        held_coef: weight of the regulariser, 0.1 in the paper.
        options: those of GRPO.
    """

    def __init__(self, held_coef: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.held_coef = check_not_negative("held_coef", held_coef)

    def active(self, batch: Batch) -> Tensor:
        """Return which rows (B,) have tokens; before the first update those with an advantage."""
        return super().active(batch) if batch.old_logprobs is None else batch.loss_mask.any(1)

    def surrogate(
        self, logprobs: Tensor, log_ratio: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """Return GRPO's loss plus the regulariser, and where GRPO's was clipped, (B, T)."""
        loss, clipped = super().surrogate(logprobs, log_ratio, batch)
        fallen = fallen_likelihood(log_ratio, batch.advantages, batch.turns)
        return loss + self.held_coef * fallen, clipped


class SearchAgentPO(GRPO):
    """Search Agent Policy Optimization (https://arxiv.org/abs/2603.10069), which is not SAPO here.

    Loss of a token: GRPO's ``+ held_coef * (old - logp)`` where the advantage is positive and the
    ratio below the threshold: a KL to the policy before the update, on those tokens alone. A
    clipped token keeps this gradient. With one update for each batch it is GRPO. The paper calls
    itself SAPO; ``SAPO`` here is Soft Adaptive Policy Optimization. Its condition (positive tokens
    of low ratio) is the paper's; estimator, weight and threshold are ours.

    Args:
        held_coef: weight of the KL.
        threshold: ratio below which a token is held; None is ``1 - clip_low``.
        options: those of GRPO.
    """

    separable = True

    def __init__(
        self, held_coef: float = 0.1, threshold: float | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.held_coef = check_not_negative("held_coef", held_coef)
        self.threshold = 1 - self.clip_low if threshold is None else threshold
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1], got {self.threshold}")

    def surrogate(
        self, logprobs: Tensor, log_ratio: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """Return GRPO's loss plus the conditional KL, and where GRPO's was clipped, (B, T)."""
        loss, clipped = super().surrogate(logprobs, log_ratio, batch)
        fallen = conditional_kl(log_ratio, batch.advantages, self.threshold)
        return loss + self.held_coef * fallen, clipped


class Reinforce(PolicyGradient):
    """REINFORCE with the mean of the batch as baseline: ``A = r - mean``, no std, no critic.

    The optimiser that https://arxiv.org/abs/2602.19526 found steadier than PPO and GRPO, where
    exact match is paid (``env.reward: em``). The mean is over all ranks. Groups are not needed.

    The baseline over the whole batch is our reading of the recipe.

    Args:
        kl_coef: weight of the KL to the reference; 0 needs no reference.
        options: those of PolicyGradient.
    """

    def __init__(self, kl_coef: float = 1e-3, **options: Any) -> None:
        super().__init__(kl_coef=kl_coef, **options)

    def advantages(self, batch: Batch) -> Tensor:
        """Return each reward less the mean of the batch, (B,)."""
        return above_batch_mean(self.rewards(batch))
