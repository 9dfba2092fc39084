"""The contract of a learning rule: rewards become advantages, log-probs become a loss.

The smallest rule defines ``advantages`` alone and takes the rest from PolicyGradient, as
``examples/my_algorithm.py`` does.
"""

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

    It is a torch module and may own parameters: they are trained with the policy's and saved in
    the checkpoint. The trainer calls, in this order: ``bind`` once; ``values`` and ``advantages``
    once for each batch of rollouts; ``weights`` and ``active`` once for each minibatch; ``loss``
    once for each portion of it, or with ``separable`` for each chunk of its tokens;
    ``after_update`` once for each optimizer step.
    """

    # a subclass must be a plain class, not a dataclass: jsonargparse would take a dataclass as a
    # group of settings and build the base class

    needs_reference: bool = False
    """Whether ``loss`` reads ``batch.ref_logprobs``."""
    needs_old_logprobs: bool = False
    """Whether ``loss`` reads ``batch.old_logprobs``, those before the first update. They stay None
    if a batch is used for one update only, because the policy has then not moved yet."""
    needs_values: bool = False
    """Whether ``advantages`` or ``loss`` read ``batch.values``; ``out.hidden`` is then set."""
    needs_groups: bool = False
    """Whether rollouts of one question are compared, so that there must be at least two of each."""
    separable: bool = False
    """Whether ``loss`` is a sum over tokens whose terms depend on the token's own columns only. Its
    gradient is then computed in the same pass over the vocabulary. False is always correct; a
    subclass that defines ``loss``, ``surrogate`` or ``values`` gets False unless it says True."""
    entropy_gradient: bool = True
    """Whether ``loss`` needs the gradient of ``out.entropy``. False, if the entropy is only logged,
    saves several times the memory of the logits."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Set ``separable`` to False in a subclass that changes the loss and does not set it."""
        super().__init_subclass__(**kwargs)
        if "separable" not in vars(cls) and {"loss", "surrogate", "values"} & vars(cls).keys():
            cls.separable = False

    def bind(self, policy: LMPolicy) -> None:
        """Build what depends on the policy's size, such as a value head."""

    def correct(self, reason: str) -> None:
        """Be told, before a fit, why its sampler differs from its learner."""

    def values(self, out: PolicyOutput) -> Tensor:
        """Return the critic's values (B, T) from ``out.hidden`` (B, T, D)."""
        raise NotImplementedError(f"{type(self).__name__} needs values and must define values()")

    def advantages(self, batch: Batch) -> Tensor:
        """Return the advantages of rollouts (B,) or tokens (B, T); may set ``batch.returns``."""
        raise NotImplementedError(f"{type(self).__name__} must define advantages()")

    def weights(self, batch: Batch) -> Tensor:
        """Return each token's weight (B, T) in the loss of this minibatch; here all are equal."""
        return token_weights(batch.loss_mask, "token-mean", batch.num_tokens, batch.num_rows)

    def active(self, batch: Batch) -> Tensor:
        """Return which rows (B,) bool can have a gradient; the others are not computed."""
        return torch.ones_like(batch.rewards, dtype=torch.bool)

    def loss(self, out: PolicyOutput, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of these rows, a scalar, and metrics to log.

        Loss and metrics must be weighted sums, ``(per_token * batch.weights).sum()``. The trainer
        adds up those of all portions, and divides the metrics by the sum of the weights.

        Args:
            out: the policy's forward pass with gradient, (B, T) tensors.
            batch: a portion of a minibatch, with advantages and weights.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss()")

    def after_update(self, metrics: Mapping[str, Tensor]) -> None:
        """Use the metrics of an optimizer step, for example to adapt a coefficient.

        What it changes must be a buffer, so that a checkpoint holds it.

        Args:
            metrics: means, the same on every rank.
        """


def weighted_sum(per_token: Tensor, batch: Batch) -> Tensor:
    """Return the weighted sum of a (B, T) quantity over the loss tokens."""
    # the other columns may hold inf or nan, which 0 times would not remove
    return (per_token.masked_fill(~batch.loss_mask, 0.0) * batch.weights).sum()


def weighted_metric(per_token: Tensor, batch: Batch) -> Tensor:
    """Return the weighted sum in float32 and without a graph, as ``Algorithm.loss`` must."""
    return weighted_sum(per_token.detach().float(), batch)


def check_positive(name: str, value: float) -> float:
    """Return the value.

    Raises:
        ValueError: it is not positive, or nan.
    """
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value


def check_not_negative(name: str, value: float) -> float:
    """Return the value.

    Raises:
        ValueError: it is negative, or nan.
    """
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value}; 0 turns it off")
    return value


def check_known(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that a value is one of the choices.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
