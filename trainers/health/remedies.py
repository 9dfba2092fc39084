"""What a guard can do to a running fit: go back to a snapshot, learn slower, hold the policy."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from research_rl.trainers.checkpoint import remove_checkpoint

log = logging.getLogger(__name__)

_KEPT = 2
_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""What a scheduler keeps of the learning rate in a parameter group."""


class Snapshots:
    """The last good states of weights and optimizer, as checkpoints: files, or folders of shards.

    One that the newest checkpoint of the run knows of outlives its time, so that a run which is
    resumed from there finds it.
    """

    def __init__(self) -> None:
        self.kept: dict[int, str] = {}
        """Iterations learned from -> file, oldest first."""
        self._folder = Path()
        self._known: set[str] = set()
        self._taking = False

    def begin(self, folder: Path) -> None:
        """Say where the checkpoints go, and forget those that are gone."""
        self._folder = folder
        gone = [step for step, path in self.kept.items() if not Path(path).exists()]
        for step in gone:
            log.warning("the snapshot of step %d is gone: %s", step, self.kept.pop(step))

    def take_if_due(self, trainer: pl.Trainer, iteration: int, every: int) -> None:
        """Write the present state, on every rank, if the last is ``every`` iterations old.

        The oldest goes if there are more than two.
        """
        if iteration - max(self.kept, default=iteration - every) < every:
            return
        path = str(self._folder / f"good_{iteration:06d}.ckpt")
        self._taking = True
        trainer.save_checkpoint(path, weights_only=False)
        self._taking = False
        self.kept[iteration] = path
        dropped = [self.kept.pop(step) for step in sorted(self.kept)[:-_KEPT]]
        if trainer.is_global_zero:
            for old in {*dropped, *self._stale()} - self._known:
                remove_checkpoint(Path(old))

    def restore(self, trainer: pl.Trainer, at_most: int) -> int:
        """Put back weights and optimizer, on every rank; return which iteration's they are.

        The learning rate stays what it is, for a scheduler may have moved on since. Later
        snapshots are forgotten.

        Args:
            trainer: in a fit.
            at_most: the newest iteration wanted; the oldest snapshot is taken if all are newer.
        """
        chosen = max((step for step in self.kept if step <= at_most), default=min(self.kept))
        rates = [[_rates(group) for group in o.param_groups] for o in trainer.optimizers]
        strategy = trainer.strategy
        state = strategy.load_checkpoint(Path(self.kept[chosen]), weights_only=False)
        module: Any = trainer.lightning_module
        strategy.load_model_state_dict(state, strict=module.strict_loading)
        strategy.load_optimizer_state_dict(state)
        module.weights_replaced()
        for optimizer, former in zip(trainer.optimizers, rates, strict=True):
            for group, values in zip(optimizer.param_groups, former, strict=True):
                group.update(values)
        self.kept = {step: path for step, path in self.kept.items() if step <= chosen}
        return chosen

    def state(self) -> dict[int, str]:
        """Return the files for a checkpoint; from now on they are kept for it."""
        if not self._taking:
            self._known = set(self.kept.values())
        return dict(self.kept)

    def load(self, kept: dict[int, str]) -> None:
        """Take up the files of a checkpoint."""
        self.kept = {int(step): path for step, path in kept.items()}
        self._known = set(self.kept.values())

    def _stale(self) -> set[str]:
        """Files of an earlier time that nothing names any more."""
        found = {str(path) for path in self._folder.glob("good_*.ckpt")}
        return found - set(self.kept.values())


def scale_learning_rate(trainer: pl.Trainer, factor: float) -> float:
    """Multiply the learning rate of every optimizer, and what schedulers derive it from.

    Returns the first parameter group's new one.
    """
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group.update({name: value * factor for name, value in _rates(group).items()})
    for config in trainer.lr_scheduler_configs:
        _scale_scheduler(config.scheduler, factor)
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def _rates(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in _RATES if name in group}


def _scale_scheduler(scheduler: Any, factor: float) -> None:
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    if hasattr(scheduler, "eta_min"):
        scheduler.eta_min *= factor
    for part in getattr(scheduler, "_schedulers", ()):
        _scale_scheduler(part, factor)


def kl_coef(algorithm: nn.Module) -> float | None:
    """Return an algorithm's weight of the KL, None if it has none."""
    value = getattr(algorithm, "kl_coef", None)
    return None if value is None else float(value)


def scale_kl(algorithm: nn.Module, factor: float) -> float:
    """Multiply an algorithm's kl_coef, a number or a buffer, and return it."""
    value: Any = algorithm.kl_coef
    if isinstance(value, Tensor):
        with torch.no_grad():
            value.mul_(factor)
    else:
        algorithm.kl_coef = value * factor
    return float(algorithm.kl_coef)  # type: ignore[arg-type]
