"""Sampler and learner: whether they compute the same probabilities, and why not.

Rollouts that another engine, dtype or older weights sampled are off-policy. Their tokens are then
weighed by an importance correction (``Algorithm.correct``).
"""

from __future__ import annotations

from typing import Any

import torch

from research_rl.agents import Engine, LMPolicy, warn_if_slow
from research_rl.trainers.algorithms import Algorithm
from research_rl.trainers.distributed import is_sharded
from research_rl.trainers.settings import Updates

# the others ("bf16-true", ...) cast every batch, and a batch of questions cannot be cast
_PRECISIONS = ("32-true", "64-true", "bf16-mixed")
_MIXED = {"bf16-mixed": torch.bfloat16}


def sampler_differs(
    policy: LMPolicy, engine: Engine, updates: Updates, precision: Any = None
) -> str | None:
    """Return why sampled log-probs differ from the learner's; None if they should be the same.

    Rollouts are sampled without autocast: in the engine's dtype, else in that of the weights.

    Args:
        policy: that is trained.
        engine: that samples from it.
        updates: what the learner computes in, and whether rollouts are sampled ahead.
        precision: of the trainer, e.g. bf16-mixed.
    """
    if updates.async_rollouts:
        return "rollouts are sampled one update ahead"
    if engine.holds_weights:
        return "rollouts are sampled by servers"
    own = next(policy.model.parameters()).dtype
    copy = getattr(engine, "dtype", None)
    if copy is None and is_sharded(policy.model):  # the weights are gathered in this dtype
        copy = updates.dtype_on(policy.device)
    sampler, learner = copy or own, learner_dtype(updates, policy.device, precision) or own
    if sampler != learner:
        return f"rollouts are sampled in {_name(sampler)} and learned from in {_name(learner)}"
    if sampler != torch.float32 and copy is not None:
        return f"rollouts are sampled from a copy in {_name(sampler)}"
    return None


def learner_dtype(
    updates: Updates, device: torch.device, precision: Any = None
) -> torch.dtype | None:
    """Return the dtype in which the learner computes; None if it is that of the weights.

    Args:
        updates: their ``compute_dtype`` goes before the precision.
        device: where it computes.
        precision: of the trainer, e.g. bf16-mixed.
    """
    return updates.dtype_on(device) or _MIXED.get(str(precision))


def check_precision(precision: Any) -> None:
    """Refuse a precision of the trainer that would cast questions, or lose gradients.

    Raises:
        ValueError: names those that can be.
    """
    if precision == "16-mixed":
        raise ValueError(
            "trainer.precision must not be 16-mixed: it scales the loss only behind the output "
            "head, whose gradients have been rounded to 0 in float16 by then; leave it at 32-true "
            "and set model.updates.compute_dtype to float16, which scales before"
        )
    if precision not in _PRECISIONS:
        raise ValueError(
            f"trainer.precision must be one of {', '.join(_PRECISIONS)}, got "
            f"{precision}; for half-precision weights set model.policy.dtype"
        )


def correct_for_sampler(
    algorithm: Algorithm, policy: LMPolicy, engine: Engine, updates: Updates, precision: Any
) -> None:
    """Tell an algorithm why its sampler differs from its learner, if it does."""
    if reason := sampler_differs(policy, engine, updates, precision):
        algorithm.correct(reason)


def warn_of_slow_dtypes(policy: LMPolicy, precision: Any, device: torch.device) -> None:
    """Warn where a run is in half precision and its machine is far slower in that.

    Args:
        policy: its weights may be in half precision themselves.
        precision: of the trainer, e.g. bf16-mixed.
        device: where it will compute.
    """
    if (mixed := _MIXED.get(str(precision))) is not None:
        warn_if_slow(mixed, device, "trainer.precision")
    warn_if_slow(next(policy.model.parameters()).dtype, device, "policy.dtype")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
