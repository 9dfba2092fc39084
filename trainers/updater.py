"""The optimizer steps of an iteration: rollouts in, a policy that has learned from them out.

    rollouts -> batch -> log-probs to compare with -> advantages
    each epoch, each minibatch: weights -> portions -> gradients, added up -> one optimizer step

Two epochs of three minibatches are six optimizer steps.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from research_rl.agents import Rollout
from research_rl.agents.engines import seed_of
from research_rl.trainers.ahead import stale_rows
from research_rl.trainers.algorithms import Batch, constant_group_fraction
from research_rl.trainers.collect import most_varied
from research_rl.trainers.credit import TurnRewards
from research_rl.trainers.distributed import (
    average_gradients,
    clip_gradients,
    is_sharded,
    mean_over_ranks,
    means_over_ranks,
    most,
    without_sync,
)
from research_rl.trainers.learner import MISMATCH, Backward, Learner
from research_rl.trainers.settings import Updates

log = logging.getLogger(__name__)

_START = 2.0**16
_PATIENCE = 2000
"""Good steps in a row after which the scale is doubled."""
_MAIN_MEMORY = torch.device("cpu")


class LossScale:
    """What the loss is multiplied by, so that small gradients do not round to 0 in float16.

    float16 has no number between 0 and 6e-8. The loss is multiplied by a large scale, the gradients
    of the float32 weights are divided by it again. If one of them is not finite the step is left
    out and the scale halved; after many good steps it is doubled. As in torch's ``GradScaler``,
    whose numbers are taken over, but for optimizer steps of many portions.

    Args:
        compute_dtype: of ``updates``; only float16 needs a scale, all else has 1.
    """

    def __init__(self, compute_dtype: str | None = None) -> None:
        self._adapts = compute_dtype == "float16"
        self.value = _START if self._adapts else 1.0
        self.skipped = 0
        """Steps that were left out so far."""
        self._good = 0

    def unscale(self, parameters: Iterable[Tensor], norm: Tensor) -> bool:
        """Divide the gradients by the scale, and adapt it.

        Args:
            parameters: all that the optimizer moves.
            norm: of the scaled gradients, over all ranks and before they were clipped.

        Returns:
            Whether the step may be taken. If not, no parameter has a gradient any more, so that
            an optimizer changes nothing, and the scale is halved.
        """
        if not self._adapts:
            return True
        if bool(norm.isfinite()):
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(self.value)
            self._good += 1
            if self._good >= _PATIENCE:
                self.value, self._good = self.value * 2, 0
            return True
        if self.value <= 1:
            return True  # it is not the scale; who measures the norm refuses it
        for parameter in parameters:
            parameter.grad = None
        self.value, self._good, self.skipped = self.value / 2, 0, self.skipped + 1
        log.warning(
            "a gradient in float16 is not finite: the step is left out and the loss scaled by %g "
            "from here on; if that goes on, compute in bfloat16",
            self.value,
        )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on with the same scale; nothing without float16."""
        if not self._adapts:
            return {}
        return {"value": self.value, "good": self._good, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved scale; without float16 it stays 1.

        A run without float16 once saved a scale of 1; one that goes on from it in float16 begins
        as every float16 run does.
        """
        never_scaled = state.get("value") == 1 and not state.get("skipped")
        if self._adapts and state and not never_scaled:
            self.value, self._good = float(state["value"]), int(state["good"])
            self.skipped = int(state["skipped"])


def place_states(
    optimizers: Iterable[Optimizer],
    updates: Updates,
    model: nn.Module,
    device: torch.device = _MAIN_MEMORY,
) -> None:
    """Move the states of optimizers to a device, if ``park_optimizer`` is set.

    Call it wherever states have come to the policy's device and rollouts are sampled next: after a
    checkpoint was loaded, and after an update. Single numbers, such as a count of steps, stay.

    Args:
        optimizers: of the run.
        updates: they say whether states are parked.
        model: that is trained.
        device: main memory, unless an update is about to be made.

    Raises:
        ValueError: the weights are in shards.
    """
    if not updates.park_optimizer:
        return
    if is_sharded(model):
        raise ValueError("park_optimizer must be off with weights in shards; set it to false")
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    state[name] = value.to(device)


def warn_of_parking(updates: Updates) -> None:
    """Warn where states are parked, but rollouts are sampled while the policy learns."""
    if updates.park_optimizer and updates.async_rollouts:
        log.warning(
            "park_optimizer makes no room for training rollouts with async_rollouts 1, got both: "
            "they are sampled during the updates, when the optimizer's states are on the device; "
            "set updates.park_optimizer to false, or updates.async_rollouts to 0"
        )


class Updater:
    """Takes the optimizer steps of one fit.

    Args:
        learner: computes the gradients; its algorithm and settings are used here too.
        trainer: gives access to the other ranks.
        optimizer: in Lightning's wrapper, through which the trainer counts steps.
        scheduler: stepped after each optimizer step; None keeps the learning rate.
        backward: computes the gradient of a loss and adds it to that of the portions before,
            ``LightningModule.manual_backward``.
        seed: of the run; shuffles rollouts into minibatches.
        scale: of the loss, for float16; None scales nothing.
    """

    def __init__(
        self,
        learner: Learner,
        trainer: pl.Trainer,
        optimizer: LightningOptimizer,
        scheduler: Any,
        backward: Backward,
        seed: int,
        scale: LossScale | None = None,
    ) -> None:
        self.learner = learner
        self.algorithm, self.updates = learner.algorithm, learner.updates
        self._trainer, self._backward, self._seed = trainer, backward, seed
        self._optimizer, self._scheduler = optimizer, scheduler
        self._sharded = is_sharded(learner.policy.model)
        self._scale = LossScale() if scale is None else scale
        self._iteration = 0
        self._grad_norm = torch.zeros(())

    def learn(
        self,
        rollouts: Sequence[Rollout],
        iteration: int,
        turn_rewards: TurnRewards | None = None,
        paid: Sequence[float] | None = None,
    ) -> tuple[dict[str, Tensor], list[float]]:
        """Take all optimizer steps of an iteration; every rank calls it with its own rollouts.

        Args:
            rollouts: whole groups.
            iteration: how many iterations the policy has learned from before.
            turn_rewards: of each turn of each rollout, if turns have rewards of their own.
            paid: what each rollout earns after a price; None is its reward. The metrics then say
                what was charged (price) and the share of rollouts that paid (charged).

        Returns:
            Metrics, each the mean over the steps, and the advantage of each rollout, the mean over
            its tokens; 0 for one that ``downsample_to`` leaves out.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; the weights are then those
                before that step.
        """
        self._iteration = iteration
        policy, updates = self.learner.policy, self.updates
        rewards = [rollout.reward.value for rollout in rollouts]
        earned = rewards if paid is None else list(paid)
        unread = set(stale_rows(rollouts, iteration, updates.max_staleness))
        if updates.mask_truncated:
            unread |= {i for i, one in enumerate(rollouts) if one.finish_reason == "length"}
        kept = most_varied(earned, updates.group_size, updates.downsample_to, unread)
        learned = [rollouts[row] for row in kept]
        batch = Batch.from_rollouts(learned, policy.pad_id, updates.mask_truncated)
        batch.rewards = torch.tensor([earned[row] for row in kept], dtype=batch.rewards.dtype)
        batch = batch.to(policy.device)
        batch.leave_out(stale_rows(learned, iteration, updates.max_staleness))
        if turn_rewards is not None:
            batch.set_turn_rewards([turn_rewards[row] for row in kept])
        self.learner.score(batch)
        states, model = [self._optimizer.optimizer], policy.model
        place_states(states, updates, model, policy.device)
        metrics = self._steps(batch)
        place_states(states, updates, model)
        metrics["frac_zero_std"] = constant_group_fraction(batch.rewards, batch.groups)
        if paid is not None:
            due = batch.rewards.new_tensor(rewards) - batch.rewards.new_tensor(paid)
            metrics |= {"price": due.mean(), "charged": (due > 0).float().mean()}
        means = batch.advantages.sum(1) / batch.loss_mask.sum(1).clamp(min=1)
        advantages = [0.0] * len(rollouts)
        for row, advantage in zip(kept, means.tolist(), strict=True):
            advantages[row] = advantage
        return metrics, advantages

    def _steps(self, batch: Batch) -> dict[str, Tensor]:
        """Go through the batch as often as configured; return metrics, means over the steps."""
        updates, total = self.updates, defaultdict[str, Tensor](self._zero)
        first = True
        for epoch in range(updates.num_epochs):
            shuffled = seed_of(self._seed, "minibatches", self._iteration, epoch)
            seed = shuffled if updates.num_minibatches > 1 else None
            for minibatch in batch.minibatches(updates.num_minibatches, seed, self._mean):
                metrics = self._step(minibatch, compare=first)
                for name, value in metrics.items():
                    single = name in MISMATCH  # measured in the first step only
                    total[name] = total[name] + (value if single else value / updates.steps)
                first = False
        return dict(total)

    def _step(self, minibatch: Batch, compare: bool) -> dict[str, Tensor]:
        """Take one optimizer step; return its metrics, the same on every rank.

        Args:
            minibatch: what to learn from.
            compare: also measure how far sampled and recomputed log-probs are apart.
        """
        optimizer = self._optimizer
        optimizer.zero_grad()
        sums = means_over_ranks(self._trainer, self._gradient(minibatch, compare))
        scale, weight = self._scale.value, sums.pop("weight")  # metrics are scaled as weight is
        loss = sums.pop("loss") / scale
        tokens = sums.pop("tokens", weight).clamp(min=1)
        apart = {name: sums.pop(name) / tokens for name in list(sums) if name in MISMATCH}
        self._check_finite("loss", loss)
        rate = self._zero() + optimizer.param_groups[0]["lr"]
        optimizer.step()  # Lightning calls on_before_optimizer_step, and so clip(), in here
        optimizer.zero_grad()  # frees the gradients' memory for the next rollouts
        self.learner.moved()
        if self._scheduler is not None:
            self._scheduler.step()
        metrics = {name: value / weight for name, value in sums.items()}
        self.algorithm.after_update(metrics)
        found = metrics | apart | {"loss": loss, "grad_norm": self._grad_norm, "lr": rate}
        return found if scale == 1 else found | {"loss_scale": self._zero() + scale}

    def _gradient(self, minibatch: Batch, compare: bool) -> dict[str, Tensor]:
        """Add up the gradients of all portions; return sums of loss, weights and metrics."""
        # scaled before the gradient of the logits is computed, so that it does not round to 0
        minibatch.weights = self.algorithm.weights(minibatch) * self._scale.value
        active = self.algorithm.active(minibatch).nonzero()[:, 0]
        # one row is computed even if none has a gradient: the other ranks wait for this one
        rows = minibatch[active if len(active) else torch.zeros_like(minibatch.groups[:1])]
        parts = self.learner.portions(rows)
        sums = defaultdict[str, Tensor](self._zero)
        passes = most(len(parts))
        for number in range(passes):
            # gradients are averaged over ranks in a collective, so every rank must run the same
            # number of passes; one with fewer portions goes on with a row of weight 0
            portion = rows[parts[number]] if number < len(parts) else rows.blank()
            with without_sync(self._trainer, wanted=number < passes - 1):
                found = self.learner.backward(portion, self._backward, compare)
            for name, value in found.items():
                sums[name] = sums[name] + value
        return dict(sums)

    def clip(self, optimizer: Optimizer) -> None:
        """Measure the norm of the gradient and scale it down to ``max_grad_norm``.

        Raises:
            FloatingPointError: it is not finite. Not raised where a gradient is scaled
                (compute_dtype float16), with which that happens now and then: the step is skipped.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self._sharded:  # FSDP averages the gradients of the policy; a critic is outside of it
            average_gradients(self._trainer, self.algorithm.parameters())
        scale = self._scale.value
        limit = scale * (self.updates.max_grad_norm or math.inf)
        scaled = clip_gradients(parameters, limit)
        self._grad_norm = scaled / scale
        taken = self._scale.unscale(parameters, scaled)
        if taken:
            self._check_finite("grad_norm", self._grad_norm)

    def _check_finite(self, name: str, value: Tensor) -> None:
        if not bool(value.isfinite()):
            raise FloatingPointError(
                f"train/{name} must be finite, got {float(value)} in iteration {self._iteration}; "
                "the weights are those before this update. Look at train/grad_norm, train/kl and "
                "train/entropy of the iterations before; lower the learning rate or max_grad_norm, "
                "and resume from a checkpoint before they rose"
            )

    def _mean(self, value: Tensor) -> Tensor:
        return mean_over_ranks(self._trainer, value)

    def _zero(self) -> Tensor:
        return torch.zeros((), device=self.learner.policy.device)
