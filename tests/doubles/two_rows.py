"""Two rollouts of two tokens, small enough to work out their losses and gradients by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from research_rl.agents.policy.policy import PolicyOutput
from research_rl.trainers.algorithms import Algorithm
from research_rl.trainers.algorithms.batch import Batch


def batch(mask: list[list[bool]], rewards: list[float], groups: list[int]) -> Batch:
    """A batch whose tokens do not matter."""
    loss_mask = torch.tensor(mask)
    rows, width = loss_mask.shape
    return Batch(
        input_ids=torch.zeros(rows, width + 1, dtype=torch.long),
        attention_mask=torch.ones(rows, width + 1, dtype=torch.bool),
        loss_mask=loss_mask,
        sampled_logprobs=torch.zeros(rows, width),
        rewards=torch.tensor(rewards),
        groups=torch.tensor(groups),
    )


def ready(rule: Algorithm, rows: Batch) -> Batch:
    """Set what the trainer sets before a loss."""
    found = rule.advantages(rows)
    rows.advantages = (found[:, None] if found.ndim == 1 else found) * rows.loss_mask
    rows.weights = rule.weights(rows)
    return rows


def output(values: list[list[float]], entropy: float = 0.5) -> PolicyOutput:
    logprobs = torch.tensor(values, requires_grad=True)
    return PolicyOutput(logprobs, torch.full_like(logprobs, entropy, requires_grad=True), None)


def gradient(loss: Tensor, out: Tensor | None) -> Tensor:
    assert out is not None
    found = torch.autograd.grad(loss, out)[0]
    return found


ROOT = math.sqrt(0.5)  # both rewards are 0.5 from their mean and their unbiased std is sqrt(0.5)
