"""The learning rate over a run: up at its beginning, down towards its end.

The last updates of a run decide which policy is kept. At the full rate one unlucky batch among
them can undo what a hundred good ones have taught; at a small one it cannot.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupDecay(LRScheduler):
    """Rises linearly from ``start_factor`` to 1, then falls linearly to ``end_factor``.

    With ``total=50, warmup=5`` the first update has ``start_factor`` of the optimizer's rate, the
    sixth has all of it, and the fiftieth ``end_factor``; what comes later stays there. It depends
    on the step alone: a run that goes on with a larger ``total`` has the rates of that.

    Args:
        optimizer: whose rates are changed, those of each parameter group.
        total: updates of the run, ``trainer.max_steps``.
        warmup: updates before the full rate.
        start_factor: of the rate, in the first update; above 0, at most 1.
        end_factor: of the rate, in the last one; 0 to 1.
        last_epoch: updates before this one, -1 at the beginning; as in torch.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total: int,
        warmup: int = 5,
        start_factor: float = 0.2,
        end_factor: float = 0.05,
        last_epoch: int = -1,
    ) -> None:
        if total < 1:
            raise ValueError(
                f"total must be the number of updates of the run, at least 1, got {total}; set "
                "trainer.max_steps, or choose a schedule without an end (LinearLR)"
            )
        if warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {warmup}")
        if not 0 < start_factor <= 1:
            raise ValueError(f"start_factor must be above 0 and at most 1, got {start_factor}")
        if not 0 <= end_factor <= 1:
            raise ValueError(f"end_factor must be between 0 and 1, got {end_factor}")
        self.total, self.warmup = total, warmup
        self.start_factor, self.end_factor = start_factor, end_factor
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each parameter group in the next update."""
        return [rate * self._factor(self.last_epoch) for rate in self.base_lrs]

    def _factor(self, update: int) -> float:
        """The share of the full rate in an update, counted from 0."""
        if update < self.warmup:
            return self.start_factor + (1 - self.start_factor) * update / self.warmup
        falling = max(1, self.total - 1 - self.warmup)
        gone = min(1.0, (update - self.warmup) / falling)
        return 1 - (1 - self.end_factor) * gone
