"""Next-token training through the learner of reinforcement learning: ``research sft``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable

from research_rl.agents import Engine, Rollout, SamplingParams, vector_rows
from research_rl.agents.engines import CachedEngine, seed_of
from research_rl.agents.policy import LMPolicy, PolicyConfig
from research_rl.trainers.algorithms import SFT, Algorithm
from research_rl.trainers.credit import Credit, Price
from research_rl.trainers.demonstrations.encode import as_sampled, in_protocol
from research_rl.trainers.distributed import means_over_ranks
from research_rl.trainers.learner import MISMATCH
from research_rl.trainers.measures import prefixed
from research_rl.trainers.module import ReSearchModule
from research_rl.trainers.progress import log_iteration
from research_rl.trainers.settings import EnvConfig, Updates, ValidationSampling

_IMITATING: dict[str, Any] = {
    **{"group_size": 1, "num_epochs": 1, "num_minibatches": 1, "async_rollouts": 0},
    **{"downsample_to": None, "max_staleness": None, "resample_rounds": 0},
}
"""Updates of a run that samples nothing, whatever a config says about sampling."""
_SINGLE = Updates(group_size=1)


class SFTModule(ReSearchModule):
    """Teach a policy to write as demonstrations do: the loss is on what the policy would write.

    One batch of demonstrations is one optimizer step. Prompts, results and whatever else the
    environment writes have no loss. Packing, checkpoints, LoRA, sharding and validation are those
    of ReSearchModule, and a checkpoint of the one is a start for the other.

    Args:
        policy: the language model.
        env: its prompt stands before each demonstration; validation plays it.
        engine: what samples in validation.
        sampling: budget and stops of validation.
        validation_sampling: how held-out questions are answered: as in sampling but greedy, unless
            it says otherwise.
        updates: portions and precision; groups and epochs are not used.
        optimizer: of everything trainable.
        lr_scheduler: stepped after each optimizer step; None keeps the learning rate.
        seed: of everything random.
        algorithm: the learning rule of a config of ``research fit``; not used.
        credit: likewise.
        price: likewise.
    """

    learns_from_rewards = False

    def __init__(
        self,
        policy: PolicyConfig,
        env: EnvConfig = EnvConfig(),  # noqa: B008  (the CLI reads these defaults)
        engine: Callable[[LMPolicy], Engine] = CachedEngine,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008
        validation_sampling: ValidationSampling | None = None,
        updates: Updates = _SINGLE,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
        algorithm: Algorithm | None = None,
        credit: Credit | None = None,
        price: Price | None = None,
    ) -> None:
        once = replace(updates, **_IMITATING)
        super().__init__(
            policy,
            env,
            SFT(),
            engine=engine,
            sampling=sampling,
            validation_sampling=validation_sampling,
            updates=once,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            seed=seed,
        )

    def training_step(self, rollouts: Sequence[Rollout], batch_idx: int) -> None:  # type: ignore[override]
        """Imitate a batch of demonstrations."""
        start = perf_counter()
        torch.manual_seed(seed_of(self.seed, "dropout", self.iteration, self.global_rank))
        rows = vector_rows(self.env)
        spoken = [in_protocol(one, rows.protocol) for one in rollouts]
        self.train_rollouts = [as_sampled(one, self.policy, rows.prompt) for one in spoken]
        metrics = self._learn(self.train_rollouts)
        shared = means_over_ranks(self.trainer, metrics)
        unlike = (*MISMATCH, "frac_zero_std")  # of sampled rollouts alone
        means: dict[str, Any] = {k: float(v) for k, v in shared.items() if k not in unlike}
        seconds = {"update_s": perf_counter() - start}
        log_iteration(self, prefixed("train", means) | prefixed("time", seconds))
        self.iteration += 1
