"""One training step is one iteration: sample groups, score them, improve the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import lazy_instance
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer

from research_rl.agents.cached import CachedEngine
from research_rl.agents.policy import LMPolicy, PolicyConfig, Reference
from research_rl.agents.rollout import collect_rollouts
from research_rl.agents.sampling import seed_of
from research_rl.agents.types import Engine, Rollout, SamplingParams
from research_rl.envs.types import Question
from research_rl.trainers.advantages import constant_group_fraction
from research_rl.trainers.algorithms import GRPO, Algorithm
from research_rl.trainers.config import EnvConfig, Updates
from research_rl.trainers.evaluation import prediction_row, summarize
from research_rl.trainers.types import Batch

PROGRESS = ("reward", "f1", "searches")


class ReSearchModule(pl.LightningModule):
    """Trains a policy to answer questions with a search engine.

    Args:
        policy: which language model.
        env: which environment.
        algorithm: advantages and loss.
        engine: samples from the policy.
        sampling: how rollouts are sampled in training.
        validation_sampling: the same in validation, test and prediction; None is greedy with the
            budgets of ``sampling``.
        updates: how many rollouts, and how they are used.
        optimizer: builds the optimizer.
        lr_scheduler: builds a scheduler that moves once for each optimizer step; None is constant.
        validate_first: validate before the first update, so that a curve has its beginning.
        seed: of all sampling; a rollout is a function of it, the iteration and the question.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        env: EnvConfig = EnvConfig(),  # noqa: B008
        algorithm: Algorithm = lazy_instance(GRPO),  # noqa: B008
        engine: Callable[[LMPolicy], Engine] = CachedEngine,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008
        validation_sampling: SamplingParams | None = None,
        updates: Updates = Updates(),  # noqa: B008
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=0.01),
        lr_scheduler: LRSchedulerCallable | None = None,
        validate_first: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # several optimizer steps for each batch of questions
        self.policy_config, self.env_config = policy, env
        self.algorithm, self.updates, self.seed = algorithm, updates, seed
        self.sampling = _trainable(sampling)
        self.validation_sampling = validation_sampling or greedy(sampling)
        self.validate_first = validate_first
        self._make_engine, self._make_optimizer = engine, optimizer
        self._make_scheduler = lr_scheduler
        self._grad_norm = torch.zeros(())
        self.train_rollouts: list[Rollout] = []
        self.train_advantages: list[float] = []
        self.val_rollouts: list[Rollout] = []
        if policy.lora is not None:
            self.strict_loading = False  # checkpoints hold the adapter alone

    def configure_model(self) -> None:
        """Load the policy; its folder may have been made after this module was."""
        if hasattr(self, "policy"):
            return
        self.policy = LMPolicy.from_config(self.policy_config)
        self.algorithm.bind(self.policy)
        self.engine = self._make_engine(self.policy)
        self.env = self.env_config.make()
        # before a checkpoint is restored: the reference is where training began
        needed = self.algorithm.needs_reference and self.trainer.state.fn == "fit"
        self.reference = Reference(self.policy) if needed else None

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the scheduler if there is one."""
        optimizer = self._make_optimizer([*self._trained()])
        if self._make_scheduler is None:
            return optimizer
        return [optimizer], [self._make_scheduler(optimizer)]

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Return the questions: they are text."""
        return batch

    # ---- one iteration

    def on_fit_start(self) -> None:
        """Bring the reference to the device."""
        if self.reference is not None:
            self.reference.to(self.device)

    def on_train_start(self) -> None:
        """Validate before the first update; a resumed run has done that already."""
        if self.validate_first and self.global_step == 0 and self.trainer.enable_validation:
            self.trainer.validating = True
            self.trainer.fit_loop.epoch_loop.val_loop.run()
            self.trainer.training = True

    def training_step(self, questions: list[Question], batch_idx: int) -> None:
        """Collect rollouts, then make ``updates.steps`` optimizer steps with them."""
        started = perf_counter()
        rollouts = self._collect(questions)
        collected = perf_counter()
        batch = self._batch(rollouts)
        totals: dict[str, Tensor] = {}
        for minibatch in self._minibatches(batch):
            for name, value in self._update(minibatch).items():
                totals[name] = totals.get(name, 0.0) + value / self.updates.steps
        numbers: dict[str, Any] = dict(summarize(rollouts, by_hop=("f1", "searches")))
        numbers |= totals
        numbers["frac_zero_std"] = constant_group_fraction(batch.rewards, batch.groups)
        for name, value in numbers.items():
            self._log(f"train/{name}", value, len(rollouts), bar=name in PROGRESS)
        self._log("time/rollout_s", collected - started, 1)
        self._log("time/update_s", perf_counter() - collected, 1)

    def _collect(self, questions: list[Question]) -> list[Rollout]:
        """Sample a group for each question; a question that stands twice gets other samples."""
        group = [q for q in questions for _ in range(self.updates.group_size)]
        seen: dict[str, int] = {}
        seeds = []
        for question in group:
            sample = seen[question.id] = seen.get(question.id, -1) + 1
            seeds.append(seed_of(self.seed, self._iteration, question.id, sample))
        with torch.autocast(self.device.type, enabled=False):
            self.train_rollouts = collect_rollouts(
                group, self.env, self.policy, self.engine, self.sampling, seeds
            )
        return self.train_rollouts

    @property
    def _iteration(self) -> int:
        return self.trainer.fit_loop.epoch_loop.total_batch_idx

    @torch.no_grad()
    def _batch(self, rollouts: list[Rollout]) -> Batch:
        """Attach everything that the loss needs and that does not change between updates."""
        rule = self.algorithm
        batch = Batch.from_rollouts(rollouts, self.policy.pad_id).to(self.device)
        if rule.needs_values or (rule.needs_old_logprobs and self.updates.steps > 1):
            batch.old_logprobs, batch.values = self._score(batch)
        if self.reference is not None:
            batch.ref_logprobs = torch.zeros_like(batch.sampled_logprobs)
            for rows, part in self._parts(batch):
                found = self.reference.logprobs(
                    part.input_ids, part.attention_mask, self.sampling.temperature
                )
                batch.ref_logprobs[rows, : found.shape[1]] = found
        worth = rule.advantages(batch)
        worth = worth[:, None] if worth.ndim == 1 else worth
        batch.advantages = worth * batch.loss_mask
        written = batch.loss_mask.sum(1).clamp(min=1)
        self.train_advantages = (batch.advantages.sum(1) / written).tolist()
        return batch

    def _score(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the policy's log-probs and, where a critic asks, values, both (B, T)."""
        hidden = self.algorithm.needs_values
        logprobs = torch.zeros_like(batch.sampled_logprobs)
        values = torch.zeros_like(logprobs) if hidden else None
        for rows, part in self._parts(batch):
            out = self._forward(part, entropy=False, hidden=hidden)
            logprobs[rows, : out.logprobs.shape[1]] = out.logprobs
            if values is not None:
                values[rows, : out.logprobs.shape[1]] = self.algorithm.values(out)
        return logprobs, values

    def _forward(self, part: Batch, entropy: bool, hidden: bool) -> Any:
        temperature = self.sampling.temperature
        return self.policy(part.input_ids, part.attention_mask, temperature, entropy, hidden)

    def _parts(self, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
        updates = self.updates
        for rows in batch.micro_batches(updates.micro_batch_size, updates.micro_batch_tokens):
            yield rows, batch[rows].trim()

    def _minibatches(self, batch: Batch) -> Iterator[Batch]:
        for epoch in range(self.updates.num_epochs):
            seed = seed_of(self.seed, self._iteration, "minibatches", epoch)
            yield from batch.minibatches(self.updates.num_minibatches, seed)

    def _update(self, minibatch: Batch) -> dict[str, Tensor]:
        """Make one optimizer step; return what to log, means over the loss tokens."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        minibatch.count(self._mean)
        minibatch.weights = self.algorithm.weights(minibatch)
        total = minibatch.weights.sum().clamp(min=1e-12)
        active = minibatch[self.algorithm.active(minibatch).nonzero()[:, 0]]
        parts = [part for _, part in self._parts(active)] if len(active) else []
        sums: dict[str, Tensor] = {"loss": self._mean(torch.zeros((), device=self.device))}
        # under data parallelism every rank runs as many passes, the last ones for nothing
        passes = self._most(len(parts))
        for number in range(passes):
            real = number < len(parts)
            part = parts[number] if real else minibatch[torch.tensor([0])].trim()
            with self._unsynchronised(number + 1 < passes):
                out = self._forward(part, entropy=True, hidden=self.algorithm.needs_values)
                loss, metrics = self.algorithm.loss(out, part)
                self.manual_backward(loss if real else loss * 0.0)
            if real:
                sums["loss"] = sums["loss"] + loss.detach()
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0.0) + value / total
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
        return sums | {"grad_norm": self._grad_norm, "lr": _lr(optimizer)}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient; Lightning calls this after it has been synchronised and unscaled.

        Raises:
            FloatingPointError: the gradient is not finite.
        """
        limit = self.updates.max_grad_norm
        self._grad_norm = torch.nn.utils.clip_grad_norm_(
            [*self._trained()], torch.inf if limit is None else limit
        ).detach()
        if not bool(self._grad_norm.isfinite()):
            raise FloatingPointError(
                f"the gradient must be finite, got norm {float(self._grad_norm)} in iteration "
                f"{self._iteration}; lower the learning rate, or resume from the last checkpoint "
                "with --ckpt_path last"
            )

    def _trained(self) -> Iterator[torch.nn.Parameter]:
        yield from self.policy.trainable_parameters()
        yield from (p for p in self.algorithm.parameters() if p.requires_grad)

    def _unsynchronised(self, enabled: bool) -> AbstractContextManager[Any]:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return block() if enabled and block is not None else nullcontext()

    def _mean(self, value: Tensor) -> Tensor:
        reduced: Tensor = self.trainer.strategy.reduce(value.detach().clone(), reduce_op="mean")
        return reduced

    def _most(self, count: int) -> int:
        if self.trainer.world_size == 1:
            return count
        most = self.trainer.strategy.reduce(
            torch.tensor(float(count), device=self.device), reduce_op="max"
        )
        return int(most)

    # ---- validation, test, prediction

    def on_validation_epoch_start(self) -> None:
        """Forget the rollouts of the validation before."""
        self.val_rollouts = []

    def validation_step(self, questions: list[Question], batch_idx: int) -> None:
        """Answer the questions."""
        self.val_rollouts += self._answer(questions)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all questions."""
        self._log_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Forget the rollouts of an evaluation before."""
        self.val_rollouts = []

    def test_step(self, questions: list[Question], batch_idx: int) -> None:
        """Answer the questions."""
        self.val_rollouts += self._answer(questions)

    def on_test_epoch_end(self) -> None:
        """Log the means over all questions."""
        self._log_evaluation("test")

    def predict_step(self, questions: list[Question], batch_idx: int) -> list[dict[str, Any]]:
        """Return a row for each question; see ``evaluation.prediction_row``."""
        return [prediction_row(rollout) for rollout in self._answer(questions)]

    @torch.no_grad()
    def _answer(self, questions: list[Question]) -> list[Rollout]:
        seeds = [seed_of(self.seed, "evaluation", q.id) for q in questions]
        with torch.autocast(self.device.type, enabled=False):
            return collect_rollouts(
                questions, self.env, self.policy, self.engine, self.validation_sampling, seeds
            )

    def _log_evaluation(self, prefix: str) -> None:
        rollouts = self.val_rollouts
        if self.trainer.world_size > 1:
            gathered: list[list[Rollout]] = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(gathered, rollouts)
            rollouts = [rollout for share in gathered for rollout in share]
        for name, value in summarize(rollouts).items():
            bar = prefix == "val" and name == "f1"
            self.log(f"{prefix}/{name}", value, prog_bar=bar, rank_zero_only=False)

    def _log(self, name: str, value: float | Tensor, size: int, bar: bool = False) -> None:
        several = self.trainer.world_size > 1
        self.log(name, value, prog_bar=bar, batch_size=size, sync_dist=several)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter alone where LoRA is trained."""
        if self.policy_config.lora is None:
            return
        kept = {name for name, p in self.named_parameters() if p.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: v for name, v in state.items() if name in kept}


def greedy(sampling: SamplingParams) -> SamplingParams:
    """Return the same budgets with temperature 0."""
    return SamplingParams(
        max_response_tokens=sampling.max_response_tokens,
        max_result_tokens=sampling.max_result_tokens,
        temperature=0.0,
        stop=sampling.stop,
    )


def _trainable(sampling: SamplingParams) -> SamplingParams:
    """Return the settings if recomputed log-probs are those of the sampling distribution.

    Raises:
        ValueError: they are not.
    """
    if sampling.temperature <= 0 or sampling.top_p < 1 or sampling.top_k > 0:
        raise ValueError(
            "sampling must have temperature above 0, top_p 1 and top_k 0 in training, got "
            f"{sampling.temperature}, {sampling.top_p} and {sampling.top_k}; the loss would "
            "speak about another distribution than the one sampled from"
        )
    return sampling


def _lr(optimizer: Any) -> Tensor:
    return torch.tensor(float(optimizer.param_groups[0]["lr"]))
