"""Remedies of a guard in a running fit: load a snapshot, lower the learning rate, raise the KL.

Each changes the trainer's own objects in place, so that the next iteration uses it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from research_rl.trainers.checkpoint import check_shards, remove_checkpoint

log = logging.getLogger(__name__)

_KEPT = 2
_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Entries of a parameter group from which schedulers compute the learning rate."""


class Snapshots:
    """Checkpoints of the last good weights and optimizer states: files, or folders of shards.

    A snapshot that the run's newest checkpoint names is kept longer, so that a run which is resumed
    from that checkpoint finds it.
    """

    def __init__(self) -> None:
        self.kept: dict[int, str] = {}
        """File of each snapshot by the iterations it has learned from, oldest first."""
        self._folder = Path()
        self._known: set[str] = set()
        self._taking = False

    def begin(self, folder: Path) -> None:
        """Set the folder of the snapshots, and forget those whose files are missing."""
        self._folder = folder
        gone = [step for step, path in self.kept.items() if not Path(path).exists()]
        for step in gone:
            log.warning("the snapshot of step %d is gone: %s", step, self.kept.pop(step))

    def take_if_due(self, trainer: pl.Trainer, iteration: int, every: int) -> None:
        """Take a snapshot, on every rank, if the last one is ``every`` iterations old.

        If there are more than two, the oldest is removed.
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
        """Load weights and optimizer of a snapshot, on every rank; return its iteration.

        Options such as the learning rate stay as they are: a scheduler, or a config with which the
        run was resumed, may have changed them since. Later snapshots are forgotten.

        Args:
            trainer: in a fit.
            at_most: the newest iteration that is wanted; if all snapshots are newer, the oldest is
                loaded.
        """
        chosen = max((step for step in self.kept if step <= at_most), default=min(self.kept))
        held = [[_options(group) for group in o.param_groups] for o in trainer.optimizers]
        strategy = trainer.strategy
        snapshot = Path(self.kept[chosen])
        if snapshot.is_dir():
            check_shards(snapshot)
        state = strategy.load_checkpoint(snapshot, weights_only=True)
        module: Any = trainer.lightning_module
        strategy.load_model_state_dict(state, strict=module.strict_loading)
        strategy.load_optimizer_state_dict(state)
        module.weights_replaced()
        for optimizer, former in zip(trainer.optimizers, held, strict=True):
            for group, values in zip(optimizer.param_groups, former, strict=True):
                group.update(values)
        self.kept = {step: path for step, path in self.kept.items() if step <= chosen}
        return chosen

    def state(self) -> dict[int, str]:
        """Return the snapshots for a checkpoint; they are kept while it is the newest."""
        if not self._taking:  # a snapshot is a checkpoint too, but no run is resumed from it
            self._known = set(self.kept.values())
        return dict(self.kept)

    def load(self, kept: dict[int, str]) -> None:
        """Take over the snapshots of a checkpoint."""
        self.kept = {int(step): path for step, path in kept.items()}
        self._known = set(self.kept.values())

    def _stale(self) -> set[str]:
        """Files in the folder that are no snapshot any more."""
        found = {str(path) for path in self._folder.glob("good_*.ckpt")}
        return found - set(self.kept.values())


def scale_learning_rate(trainer: pl.Trainer, factor: float) -> float:
    """Multiply the learning rate of every optimizer, and the rates that schedulers start from.

    Returns the new rate of the first parameter group.
    """
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group.update({name: value * factor for name, value in _rates(group).items()})
    for config in trainer.lr_scheduler_configs:
        _scale_scheduler(config.scheduler, factor)
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


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
    """Return an algorithm's weight of the KL; None if it has none."""
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
