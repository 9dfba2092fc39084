"""The Lightning module of a run; one training batch of questions is one iteration.

An iteration samples a group of rollouts for each question, then learns from all of them. Because
it is one batch to Lightning, checkpoints fall between iterations and never inside one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import lazy_instance  # type: ignore[attr-defined]
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from research_rl.agents import (
    Engine,
    Rollout,
    SamplingParams,
    Watch,
    collect_rollouts,
    vector_rows,
)
from research_rl.agents.engines import CachedEngine, check_trainable, seed_of
from research_rl.agents.policy import LMPolicy, PolicyConfig, Reference, evaluating
from research_rl.envs import Question
from research_rl.trainers.ahead import Ahead, Collected, check_correction, description, upcoming
from research_rl.trainers.algorithms import GRPO, Algorithm
from research_rl.trainers.checkpoint import BaseModel, ResumedOptimizer, take_over
from research_rl.trainers.collect import Collector, as_paid, check_group_size, payments, pool_of
from research_rl.trainers.credit import Credit, Price
from research_rl.trainers.distributed import Shards, means_over_ranks
from research_rl.trainers.learner import Learner
from research_rl.trainers.measures import means_of, missing_answers, prediction_row, prefixed
from research_rl.trainers.progress import log_iteration
from research_rl.trainers.sampler import check_precision, correct_for_sampler, warn_of_slow_dtypes
from research_rl.trainers.settings import EnvConfig, Updates, ValidationSampling
from research_rl.trainers.updater import LossScale, Updater, place_states, warn_of_parking

# jsonargparse reads the class and its options from a lazy instance, so that a YAML may change one
# option of the default; a plain GRPO() here would also be shared by all modules of a process
_GRPO: Algorithm = lazy_instance(GRPO)


class ReSearchModule(pl.LightningModule):
    """Teaches a policy to answer questions by searching.

    Every random number is a hash of (seed, iteration, question, sample). So there is no state of
    a generator to save, and a resumed run goes on exactly as if it had not been stopped.
    Questions come from a QuestionDataModule.

    Args:
        policy: the language model; its weights before training are also the reference.
        env: the environment it plays.
        algorithm: the learning rule.
        credit: gives single turns a reward, for an algorithm that reads it; None gives none.
        price: what rollouts pay once their group is known; None charges nothing.
        engine: what samples from the policy.
        sampling: how training rollouts are sampled.
        validation_sampling: how held-out questions are answered: as in sampling but greedy, unless
            it says otherwise.
        updates: group size, and how often and in which portions rollouts are used.
        optimizer: moves the policy and what the algorithm trains, such as a critic.
        lr_scheduler: stepped after each optimizer step; None keeps the learning rate.
        seed: decides every random number of the run.

    Raises:
        ValueError: a group of one with an algorithm that compares rollouts, sampling whose
            log-probs cannot be recomputed, or asynchronous rollouts without a correction.
    """

    policy: LMPolicy
    engine: Engine
    learns_from_rewards = True  # of what the policy has sampled; False in a module that imitates

    def __init__(
        self,
        policy: PolicyConfig,
        env: EnvConfig = EnvConfig(),  # noqa: B008  (the CLI reads these defaults)
        algorithm: Algorithm = _GRPO,
        credit: Credit | None = None,
        price: Price | None = None,
        engine: Callable[[LMPolicy], Engine] = CachedEngine,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008
        validation_sampling: ValidationSampling | None = None,
        updates: Updates = Updates(),  # noqa: B008
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_trainable(sampling)
        # one batch takes several optimizer steps, so Lightning must not take one by itself; it then
        # refuses trainer.gradient_clip_val, which is why updates.max_grad_norm exists
        self.automatic_optimization = False
        self.policy_config, self._base = policy, BaseModel(policy)
        self.algorithm = GRPO() if algorithm is _GRPO else algorithm
        check_group_size(updates, self.algorithm)
        check_correction(updates, self.algorithm)
        self.credit, self.price = credit, price
        self.sampling = sampling
        self.validation_sampling = (validation_sampling or ValidationSampling()).over(sampling)
        self.updates, self.seed = updates, seed
        self.loss_scale = LossScale(updates.compute_dtype)
        self.env_config = env
        # no submodule, so that checkpoints do not hold it: it is made of the model's folder
        self.reference: Reference | None = None
        self.updater: Updater | None = None
        """Takes the optimizer steps of a fit; None before its first training batch."""
        self.watch: Watch | None = None  # of rollouts; the progress bar sets it
        self.iteration = 0
        """Batches of questions that the policy has learned from."""
        self.train_rollouts: list[Rollout] = []
        self.train_advantages: list[float] = []
        """Of the latest iteration on this rank; an advantage is its rollout's mean over tokens."""
        self.val_rollouts: list[Rollout] = []
        self.test_rollouts: list[Rollout] = []
        """Of the latest evaluation on this rank."""
        self.make_engine = engine
        """Makes what samples from a policy."""
        self._optimizing = ResumedOptimizer(optimizer, lr_scheduler)
        how = description(sampling, env, updates.group_size, updates.resample_rounds, seed)
        self._ahead = Ahead(engine, how) if updates.async_rollouts else None
        self._shards: Shards | None = None

    def setup(self, stage: str) -> None:
        """Check the precision and make the environment.

        The environment is made here and not in ``__init__``, because it opens an index that the
        data module may write in between.

        Raises:
            ValueError: the precision would cast the batches, and questions cannot be cast.
        """
        check_precision(self.trainer.precision)
        self.env = self.env_config.make()

    def configure_model(self) -> None:
        """Load the policy, and the reference if the algorithm compares with one."""
        # Lightning calls this for each fit, validation and test; the weights are loaded once
        if "policy" not in self._modules:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(self.seed, "model"))
                if self.device_mesh is None:
                    self.policy = LMPolicy.from_config(self.policy_config)
                else:
                    self._shards = Shards(self.device_mesh, self.updates.dtype_on(self.device))
                    self.policy = self._shards.policy(self.policy_config)
                self.algorithm.bind(self.policy)
            warn_of_slow_dtypes(self.policy, self.trainer.precision, self.device)
            self.engine = self.make_engine(self.policy)
            self.strict_loading = self.policy_config.lora is None  # else the adapter alone is kept
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting and self.algorithm.needs_reference and self.reference is None:
            if self._shards is None:
                self.reference = Reference(self.policy, self.updates.dtype_on(self.device))
            else:
                self.reference = self._shards.reference(self.policy, self.policy_config)

    def configure_optimizers(self) -> Any:
        """Return the optimizer of policy and algorithm, and its scheduler if there is one.

        Raises:
            ValueError: the scheduler needs a metric, or the optimizer is of another class than
                that of the checkpoint.
        """
        optimizer, scheduler = self._optimizing.make(self._moved())
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def teardown(self, stage: str) -> None:
        """End the engine's threads; another fit or test begins them anew."""
        if hasattr(self, "engine"):
            self.engine.close()
        if self._ahead is not None:
            self._ahead.close()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the iteration and the rollouts sampled ahead; with LoRA, drop the frozen weights."""
        checkpoint |= {"iteration": self.iteration, "loss_scale": self.loss_scale.state_dict()}
        self._optimizing.save(checkpoint)
        self._base.save(checkpoint)
        if self._ahead is not None:
            checkpoint["ahead"] = self._ahead.state()
        if self.policy_config.lora is not None:
            kept, state = self._trained(), checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: x for name, x in state.items() if name in kept}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the iteration and the rollouts that were sampled ahead.

        Raises:
            ValueError: the checkpoint lacks weights that are trained here, its optimizer moved
                others, or its adapter learned on another base.
        """
        self._base.check(self.trainer, checkpoint, self.reference is not None)
        self.iteration = checkpoint.get("iteration", 0)
        self.loss_scale.load_state_dict(checkpoint.get("loss_scale", {}))
        self._optimizing.load(checkpoint)
        if self._ahead is not None:
            self._ahead.load(checkpoint.get("ahead"), self.global_rank, self.trainer.world_size)
        moved = self._moved() if self.trainer.state.fn == TrainerFn.FITTING else None
        take_over(checkpoint, self._trained(), moved, self.global_rank == 0)

    def _trained(self) -> dict[str, Tensor]:
        own = {f"algorithm.{name}": x for name, x in self.algorithm.state_dict().items()}
        return {name: p for name, p in self.named_parameters() if p.requires_grad} | own

    def _moved(self) -> list[torch.nn.Parameter]:
        """What the optimizer moves."""
        return [*self.policy.trainable_parameters(), *self.algorithm.parameters()]

    def on_fit_start(self) -> None:
        """Move the reference, drop an earlier updater, tell the algorithm of its sampler."""
        self.updater = None
        self._base.look(self.trainer, self.reference is not None)
        if self.reference is not None:
            self.reference.to(self.device)
        warn_of_parking(self.updates)
        precision = self.trainer.precision
        correct_for_sampler(self.algorithm, self.policy, self.engine, self.updates, precision)

    def on_train_start(self) -> None:
        """Put changed options of the optimizer in force; validate once before the first update.

        So a learning curve has its start. Lightning's sanity check would not do: it asks some of
        the questions and logs nothing.
        """
        trainer = self.trainer
        self._optimizing.put_in_force(trainer)
        place_states(trainer.optimizers, self.updates, self.policy.model)  # those of a checkpoint
        if self.iteration or not trainer.enable_validation:
            return
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True

    def training_step(self, questions: list[Question], batch_idx: int) -> None:
        """Sample a group for each question, then learn from all of them."""
        start = perf_counter()
        self.updates.check_rollouts(len(questions))
        # dropout is all that draws from torch's generator; ranks must not drop the same units
        torch.manual_seed(seed_of(self.seed, "dropout", self.iteration, self.global_rank))
        collected = self._collected(questions)
        self.train_rollouts = collected.rollouts
        sampled = perf_counter()
        with self._sampling_ahead():
            metrics = self._learn(self.train_rollouts)
        means = means_of(self.train_rollouts, by_hop=("f1", "searches"))
        if self.updates.resample_rounds:
            means["sampled_rollouts"] = float(collected.num_sampled)
        means |= {k: float(v) for k, v in means_over_ranks(self.trainer, metrics).items()}
        seconds = {"rollout_s": sampled - start, "update_s": perf_counter() - sampled}
        log_iteration(self, prefixed("train", means) | prefixed("time", seconds))
        self.iteration += 1

    def _learn(self, rollouts: list[Rollout]) -> dict[str, Tensor]:
        """Value the turns if there is a credit, take all optimizer steps, and return metrics."""
        # not before the first batch: the learner compares two forward passes when it is made, and
        # they must run under the precision in which it learns
        if self.updater is None:
            self.updater = self._make_updater()
        turn_rewards = None
        paid = None if self.price is None else payments(rollouts, self.price)
        if self.credit is not None:
            with self.whole_policy(), torch.no_grad(), evaluating(self.policy.model):
                turn_rewards = self.credit.turn_rewards(as_paid(rollouts, paid), self.policy)
        learned = self.updater.learn(rollouts, self.iteration, turn_rewards, paid)
        metrics, self.train_advantages = learned
        return metrics

    def _make_learner(self) -> Learner:
        return Learner(
            self.policy, self.algorithm, self.updates, self.sampling.temperature, self.reference
        )

    def _make_updater(self) -> Updater:
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        scheduler, backward = self.lr_schedulers(), self.manual_backward
        learner, scale = self._make_learner(), self.loss_scale
        return Updater(learner, self.trainer, optimizer, scheduler, backward, self.seed, scale)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient; see Updater.clip. Lightning calls this within ``optimizer.step()``."""
        assert self.updater is not None
        self.updater.clip(optimizer)

    def weights_replaced(self) -> None:
        """Tell the learner that a callback has loaded other weights into the policy.

        Every rank must call it. What the former weights have sampled ahead is dropped.
        """
        if self.updater is not None:
            self.updater.learner.moved()
        place_states(self.trainer.optimizers, self.updates, self.policy.model)
        if self._ahead is not None:
            self._ahead.drop(tell=self.trainer.is_global_zero)

    def _collected(self, questions: list[Question]) -> Collected:
        """The rollouts of this iteration: those that were sampled ahead, or new ones."""
        if self._ahead is not None and (ready := self._ahead.take(questions)) is not None:
            return ready
        with self.whole_policy():
            self.engine.sync(self.iteration)
            return self._collect(self.policy, self.engine, questions, self.iteration)

    def _collect(
        self, policy: LMPolicy, engine: Engine, questions: list[Question], iteration: int
    ) -> Collected:
        """Sample the rollouts of an iteration with the current weights."""
        updates = self.updates
        collect = Collector(
            lambda asked, seeds: self._play(asked, self.sampling, seeds, policy, engine),
            updates.group_size,
            updates.resample_rounds,
            self.seed,
            self.price,
        )
        pool = pool_of(self.trainer.train_dataloader) if updates.resample_rounds else ()
        vector_rows(self.env).at(iteration)
        rollouts = collect(questions, iteration, pool)
        ids = [q.id for q in questions]
        return Collected(rollouts, collect.num_sampled, ids).stamp(self.iteration)

    def _sampling_ahead(self) -> AbstractContextManager[None]:
        """Return a context during which the next iteration's rollouts are sampled, if wanted."""
        trainer = self.trainer
        # max_steps counts optimizer steps, and is looked at between batches only
        ends = 0 <= trainer.max_steps <= trainer.global_step + self.updates.steps
        if self._ahead is None or ends:
            return nullcontext()
        questions, number = upcoming(trainer.train_dataloader), self.iteration + 1
        with self.whole_policy():
            self.engine.sync(self.iteration)
            policy, engine = self._ahead.sampler(self.policy, self.engine)
        return self._ahead.running(lambda: self._collect(policy, engine, questions, number))

    def _play(
        self,
        questions: list[Question],
        params: SamplingParams,
        seeds: list[int],
        policy: LMPolicy,
        engine: Engine,
    ) -> list[Rollout]:
        # Lightning's autocast has its cache off: it would cast every weight at every token
        with torch.autocast(self.device.type, enabled=False):
            return collect_rollouts(questions, self.env, policy, engine, params, seeds, self.watch)

    def whole_policy(self) -> AbstractContextManager[None]:
        """Return a context in which this rank holds the whole policy; every rank must enter it."""
        if self._shards is None:
            return nullcontext()
        return self._shards.whole(self.policy, getattr(self.engine, "dtype", None))

    def _answer(self, questions: list[Question]) -> list[Rollout]:
        seeds = [seed_of(self.seed, "evaluation", question.id) for question in questions]
        vector_rows(self.env).at(None)
        with self.whole_policy():
            self.engine.sync(self.iteration)
            return self._play(questions, self.validation_sampling, seeds, self.policy, self.engine)

    def on_validation_epoch_start(self) -> None:
        """Forget the rollouts of the previous validation."""
        self.val_rollouts = []

    def validation_step(self, questions: list[Question], batch_idx: int) -> None:
        """Answer validation questions."""
        self.val_rollouts += self._answer(questions)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all questions."""
        missing = missing_answers(self, "val")
        log_iteration(self, prefixed("val", means_of(self.val_rollouts, missing=missing)))

    def on_test_epoch_start(self) -> None:
        """Forget the rollouts of the previous test."""
        self.test_rollouts = []

    def test_step(self, questions: list[Question], batch_idx: int) -> None:
        """Answer test questions."""
        self.test_rollouts += self._answer(questions)

    def on_test_epoch_end(self) -> None:
        """Log the means over all questions."""
        missing = missing_answers(self, "test")
        log_iteration(self, prefixed("test", means_of(self.test_rollouts, missing=missing)))

    def predict_step(self, questions: list[Question], batch_idx: int) -> list[dict[str, Any]]:
        """Return one row for each question: its prediction, scores and text."""
        return [prediction_row(rollout) for rollout in self._answer(questions)]
