"""The part of the Lightning module that learns from a batch of rollouts: its optimizer steps."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from research_rl.agents import SamplingParams
from research_rl.agents.engines import seed_of
from research_rl.agents.policy import LMPolicy, Reference
from research_rl.trainers.algorithms import Algorithm, Batch
from research_rl.trainers.distributed import (
    Shards,
    average_gradients,
    clip_gradients,
    mean_over_ranks,
    means_over_ranks,
    most,
    without_sync,
)
from research_rl.trainers.learner import MISMATCH, Learner
from research_rl.trainers.settings import Updates


class UpdatingModule(pl.LightningModule):
    """The updates of an iteration; a subclass makes what is declared here."""

    policy: LMPolicy
    algorithm: Algorithm
    reference: Reference | None
    sampling: SamplingParams
    updates: Updates
    seed: int
    iteration: int
    _make_scheduler: LRSchedulerCallable | None
    _shards: Shards | None
    _learns: Learner | None
    _grad_norm: Tensor

    def weights_replaced(self) -> None:
        """Take over weights that something else than the optimizer has changed."""
        if self._learns is not None:
            self._learns.moved()

    def _learner(self) -> Learner:
        """What runs the policy over rollouts, made when it is first needed."""
        if self._learns is None:
            temperature = self.sampling.temperature
            self._learns = Learner(
                self.policy, self.algorithm, self.updates, temperature, self.reference
            )
        return self._learns

    def _learn(self, batch: Batch) -> dict[str, Tensor]:
        """Go through the batch as often as configured; return metrics, means over the updates."""
        updates, total = self.updates, defaultdict[str, Tensor](lambda: self._zero())
        first = True
        for epoch in range(updates.num_epochs):
            shuffled = seed_of(self.seed, "minibatches", self.iteration, epoch)
            seed = shuffled if updates.num_minibatches > 1 else None
            for minibatch in batch.minibatches(updates.num_minibatches, seed):
                metrics = self._update(minibatch, compare=first)
                for name, value in metrics.items():
                    single = name.startswith("mismatch_")  # the first update's alone
                    total[name] = total[name] + (value if single else value / updates.steps)
                first = False
        return dict(total)

    def _update(self, minibatch: Batch, compare: bool) -> dict[str, Tensor]:
        """Take one optimizer step; return its metrics, the same on every rank.

        Args:
            minibatch: what to learn from.
            compare: also measure how far sampled and recomputed log-probs are apart.
        """
        minibatch.count(lambda value: mean_over_ranks(self.trainer, value))
        minibatch.weights = self.algorithm.weights(minibatch)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        sums = means_over_ranks(self.trainer, self._backward(self._active(minibatch), compare))
        loss, weight = sums.pop("loss"), sums.pop("weight")
        tokens = sums.pop("tokens", weight).clamp(min=1)
        apart = {name: sums.pop(name) / tokens for name in list(sums) if name in MISMATCH}
        self._check_finite("loss", loss)
        rate = self._zero() + optimizer.param_groups[0]["lr"]
        optimizer.step()
        optimizer.zero_grad()  # rollouts want the room
        self._learner().moved()
        if self._make_scheduler is not None:
            scheduler: Any = self.lr_schedulers()
            scheduler.step()
        metrics = {name: value / weight for name, value in sums.items()}
        self.algorithm.after_update(metrics)
        return metrics | apart | {"loss": loss, "grad_norm": self._grad_norm, "lr": rate}

    def _place_optimizer(self, device: torch.device) -> None:
        """Move the optimizer's states, if they are to be parked between updates."""
        if not self.updates.park_optimizer:
            return
        if self._shards is not None:
            raise ValueError("park_optimizer must be off with weights in shards; set it to false")
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    state[name] = value.to(device)

    def _active(self, minibatch: Batch) -> Batch:
        """The rows that have a gradient; one row where none has, so that ranks stay in step."""
        active = self.algorithm.active(minibatch).nonzero()[:, 0]
        return minibatch[active if len(active) else torch.zeros_like(minibatch.groups[:1])]

    def _backward(self, rows: Batch, compare: bool) -> dict[str, Tensor]:
        """Add up gradients over micro-batches; return sums of loss, weights and metrics."""
        learner = self._learner()
        parts = learner.portions(rows)
        sums = defaultdict[str, Tensor](lambda: self._zero())
        passes = most(len(parts))
        for number in range(passes):
            portion = rows[parts[number]] if number < len(parts) else rows.blank()
            with without_sync(self.trainer, wanted=number < passes - 1):
                found = learner.backward(portion, self.manual_backward, compare)
            for name, value in found.items():
                sums[name] = sums[name] + value
        return dict(sums)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Measure the gradient and scale it down to max_grad_norm.

        Raises:
            FloatingPointError: it is not finite. With a gradient scaler (16-mixed) that is usual
                at times, and the scaler leaves out the step.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self._shards is not None:
            average_gradients(self.trainer, self.algorithm.parameters())
        self._grad_norm = clip_gradients(parameters, self.updates.max_grad_norm or math.inf)
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            self._check_finite("grad_norm", self._grad_norm)

    def _check_finite(self, name: str, value: Tensor) -> None:
        if not bool(value.isfinite()):
            raise FloatingPointError(
                f"train/{name} must be finite, got {float(value)} in iteration {self.iteration}; "
                "the weights are those before this update. Look at train/grad_norm, train/kl and "
                "train/entropy of the iterations before; lower the learning rate or max_grad_norm, "
                "and resume from a checkpoint before they rose"
            )

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self.device)
