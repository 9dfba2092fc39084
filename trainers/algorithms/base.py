"""The contract of a learning rule: rewards become advantages, log-probs become a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from research_rl.trainers.algorithms.batch import Batch
from research_rl.trainers.algorithms.losses import token_weights

if TYPE_CHECKING:
    from research_rl.agents.policy import LMPolicy, PolicyOutput


class Algorithm(nn.Module):
    """A learning rule. Subclass it, and name the subclass as ``--model.algorithm my_file.MyRule``.

    Being a module, it may own parameters: they are trained with the policy's and saved in the
    checkpoint. The trainer calls, in this order: ``bind`` once; ``values`` and ``advantages`` once
    for each batch of rollouts; ``weights`` and ``active`` once for each minibatch; ``loss`` once
    for each micro-batch; ``after_update`` once for each optimizer step.
    """

    needs_reference: bool = False
    """Whether ``loss`` reads ``batch.ref_logprobs``."""
    needs_old_logprobs: bool = False
    """Whether ``loss`` reads ``batch.old_logprobs``; they stay None where every batch is used for
    one update, because the policy that samples and the one that learns are then the same."""
    needs_values: bool = False
    """Whether ``advantages`` or ``loss`` read ``batch.values``; ``out.hidden`` is then set."""
    needs_groups: bool = False
    """Whether rollouts of one question are compared, so that there must be two of each."""
    separable: bool = False
    """Whether ``loss`` is a sum over tokens, each term a function of the token's own columns; its
    gradient is then computed in the same pass over the vocabulary. False is always right, and is
    what a subclass gets that defines ``loss``, ``surrogate`` or ``values`` and does not say."""
    entropy_gradient: bool = True
    """Whether ``loss`` needs the gradient of ``out.entropy``; False saves memory, several times
    the size of the logits, where the entropy is only logged."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Do not inherit ``separable`` where what it speaks about is another."""
        super().__init_subclass__(**kwargs)
        if "separable" not in vars(cls) and {"loss", "surrogate", "values"} & vars(cls).keys():
            cls.separable = False

    def bind(self, policy: LMPolicy) -> None:
        """Build what depends on the policy's size, a value head for instance."""

    def values(self, out: PolicyOutput) -> Tensor:
        """Return the critic's values (B, T) from ``out.hidden`` (B, T, D)."""
        raise NotImplementedError(f"{type(self).__name__} needs values and must define values()")

    def advantages(self, batch: Batch) -> Tensor:
        """Return what each rollout (B,) or token (B, T) is worth; may set ``batch.returns``."""
        raise NotImplementedError(f"{type(self).__name__} must define advantages()")

    def weights(self, batch: Batch) -> Tensor:
        """Return each token's share (B, T) in the loss of this minibatch: the token mean."""
        return token_weights(batch.loss_mask, "token-mean", batch.num_tokens, batch.num_rows)

    def active(self, batch: Batch) -> Tensor:
        """Return which rows (B,) bool have a gradient at all; the others are not computed."""
        return torch.ones_like(batch.rewards, dtype=torch.bool)

    def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of these rows, a scalar, and what to log.

        The loss and every metric are sums over ``batch.weights``; the trainer adds them up and
        divides the metrics by the sum of the weights.

        Args:
            out: the policy's forward pass with gradient, (B, T) tensors.
            batch: a micro-batch with advantages and weights.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss()")

    def after_update(self, metrics: Mapping[str, Tensor]) -> None:
        """Look at the means of an optimizer step, the same on every rank; to adapt a coefficient.

        What it keeps must be a buffer, so that a resumed run goes on with it.
        """


def weighted_sum(per_token: Tensor, batch: Batch) -> Tensor:
    """Return the sum of a (B, T) quantity over the loss tokens, by their weights."""
    # prompt and padding columns may hold anything, so they are cut out rather than multiplied by 0
    return (per_token.masked_fill(~batch.loss_mask, 0.0) * batch.weights).sum()


def weighted_metric(per_token: Tensor, batch: Batch) -> Tensor:
    """Return the same without a graph, in float32: a metric as ``Algorithm.loss`` returns it."""
    return weighted_sum(per_token.detach().float(), batch)


def check_positive(name: str, value: float) -> float:
    """Return the value, refused with a message if it is not positive."""
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def check_not_negative(name: str, value: float) -> float:
    """Return the value, refused with a message if it is negative."""
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}; 0 turns it off")
    return value


def check_known(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
