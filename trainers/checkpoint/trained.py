"""What a checkpoint holds beside what is trained here: another algorithm's weights, other moments.

A run may go on with another algorithm, or with other weights frozen. torch then fails in its own
words, and where the counts agree by chance it would give the moments of one weight to another.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)
_OF_ALGORITHM = "algorithm."
_MOMENTS = ("exp_avg", "momentum_buffer")
"""States of an optimizer that have the shape of their weight."""


def take_over(
    checkpoint: dict[str, Any],
    trained: Mapping[str, Tensor],
    moved: Sequence[Tensor] | None,
    says: bool,
) -> None:
    """Make a checkpoint one of what is trained here, or refuse it.

    What only the algorithm of its run had, such as a critic, is taken out with its moments.

    Args:
        checkpoint: with a ``state_dict``, else nothing is done; changed.
        trained: the weights and buffers that are trained here, by their names in it.
        moved: what the optimizer moves here, in its order, the algorithm's at the end; None where
            nothing is trained.
        says: whether to warn of what is taken out.

    Raises:
        ValueError: a weight is missing or has another shape, or the optimizer of the checkpoint
            moved other weights.
    """
    if (held := checkpoint.get("state_dict")) is None:  # the strategy has read the weights itself
        return
    _check_weights(held, trained)
    others = [name for name in held if name.startswith(_OF_ALGORITHM) and name not in trained]
    checkpoint["state_dict"] = {name: x for name, x in held.items() if name not in set(others)}
    if moved is None:
        return
    for optimizer in checkpoint.get("optimizer_states", ()):
        _fit_moments(optimizer, moved, len(others))
    if others and says:
        more = f" and {len(others) - 3} others" if len(others) > 3 else ""
        log.warning(
            "the checkpoint is of another algorithm: its %s%s and their moments are dropped; all "
            "other weights and moments go on",
            ", ".join(others[:3]),
            more,
        )


def _check_weights(held: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    if missing := sorted(trained.keys() - held.keys()):
        raise ValueError(
            f"the checkpoint must hold every trained weight, got none for {missing[0]} and "
            f"{len(missing) - 1} others; load it with the model settings of its own run"
        )
    for name, own in trained.items():
        if held[name].shape != own.shape:
            raise ValueError(
                f"the checkpoint must hold {name} in the shape {tuple(own.shape)}, got "
                f"{tuple(held[name].shape)}; load it with the model settings of its own run"
            )


def _fit_moments(optimizer: dict[str, Any], moved: Sequence[Tensor], dropped: int) -> None:
    """Take out the moments of weights that were dropped; refuse those of other weights.

    Args:
        optimizer: the state of one, changed.
        moved: the weights here.
        dropped: number of names that were taken out. The moments of those that are no buffers
            stand at the end.
    """
    groups = optimizer["param_groups"]
    surplus = sum(len(group["params"]) for group in groups) - len(moved)
    if len(groups) == 1 and 0 < surplus <= dropped:
        gone = set(groups[0]["params"][len(moved) :])
        groups[0]["params"] = groups[0]["params"][: len(moved)]
        optimizer["state"] = {n: one for n, one in optimizer["state"].items() if n not in gone}
    numbers = [number for group in groups for number in group["params"]]
    states = [optimizer["state"].get(number, {}) for number in numbers]
    if len(states) != len(moved) or not all(map(_fits, states, moved)):
        raise ValueError(
            "the checkpoint must hold the optimizer's moments of the weights that are trained "
            f"here, {len(moved)} tensors, got {len(states)}, or others in their place; keep "
            "model.policy.freeze_layers, freeze_embeddings and lora and model.algorithm as its run "
            "had them, or begin another run from the weights alone: research export --ckpt "
            "CHECKPOINT --out FOLDER, then research fit --model.policy.model FOLDER without "
            "--ckpt_path"
        )


def _fits(state: Mapping[str, Any], weight: Tensor) -> bool:
    moments = (state.get(name) for name in _MOMENTS)
    return all(one is None or one.shape == weight.shape for one in moments)
