"""Next-token training as a learning rule: the loss is what the policy finds unlikely of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from research_rl.trainers.algorithms.base import Algorithm, weighted_metric, weighted_sum
from research_rl.trainers.algorithms.batch import Batch

if TYPE_CHECKING:
    from research_rl.agents.policy import PolicyOutput


class SFT(Algorithm):
    """Supervised fine-tuning: the mean negative log-likelihood of the tokens to imitate, in nats.

    Every loss token counts alike, whatever demonstration it stands in; prompts and results have no
    loss. Rewards and groups are not read.
    """

    separable = True
    entropy_gradient = False

    def advantages(self, batch: Batch) -> Tensor:
        """Return 1 for every demonstration (B,): all are to be imitated."""
        return torch.ones_like(batch.rewards)

    def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of ``-log p(token)``; its mean is logged as ``nll``."""
        nll = -out.logprobs
        metrics = {"nll": weighted_metric(nll, batch)}
        if out.entropy is not None:
            metrics["entropy"] = weighted_metric(out.entropy, batch)
        return weighted_sum(nll, batch), metrics
