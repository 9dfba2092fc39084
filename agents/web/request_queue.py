"""A queue of requests from many callers to one model; those that wait are run together.

While a run is under way the next requests gather. Rule: a request gets what it would have got
alone, up to the rounding of another batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from research_rl.agents.engines import (
    MAX_SLOTS,
    CachedEngine,
    TurnwiseEngine,
    check_params,
    engine_for,
)
from research_rl.agents.policy import LMPolicy
from research_rl.agents.types import SamplingParams, Sequence
from research_rl.agents.web.weights import take_adapter, take_weights

MAX_WAITING = 4096
"""Requests that wait; a turn of a training run is one."""


class QueueFullError(RuntimeError):
    """More requests wait than the server accepts; to be asked again later."""


@dataclass(frozen=True)
class Completion:
    """A request for one turn.

    Args:
        model: the model's name, or an adapter's.
        prompt: token ids.
        params: how to sample; ``max_response_tokens`` is this request's.
        seed: int64; position 0 is the first token behind the prompt.
    """

    model: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int


@dataclass(eq=False)
class _Job:
    done: Future[Any] = field(default_factory=Future)
    completion: Completion | None = None
    change: Callable[[], None] | None = None

    @property
    def kind(self) -> tuple[str, SamplingParams] | None:
        """What can run together."""
        if self.completion is None:
            return None
        return self.completion.model, replace(self.completion.params, max_response_tokens=1 << 30)


class _Budgets:
    """Gives each row a budget of its own: past it, nothing but an end of sequence is sampled."""

    budgets = torch.zeros(0, dtype=torch.int64)  # (rows,)
    eos = 0

    def within_budgets(self, logits: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Logits (B, V) that are sampled from."""
        over = positions >= self.budgets[rows]
        if bool(over.any()):
            logits = logits.clone()
            where = over.to(logits.device)
            logits[where] = -torch.inf
            logits[where, self.eos] = 0.0
        return logits


class _Cached(_Budgets, CachedEngine):
    def shape_logits(
        self, logits: Tensor, rows: Tensor, positions: Tensor, params: SamplingParams
    ) -> Tensor:
        """See CachedEngine."""
        logits = super().shape_logits(logits, rows, positions, params)
        return self.within_budgets(logits, rows, positions)


class _Turnwise(_Budgets, TurnwiseEngine):
    def shape_logits(
        self, logits: Tensor, rows: Tensor, positions: Tensor, params: SamplingParams
    ) -> Tensor:
        """See TurnwiseEngine."""
        logits = super().shape_logits(logits, rows, positions, params)
        return self.within_budgets(logits, rows, positions)


class RequestQueue:
    """Takes requests and changes of weights in their order; thread-safe.

    >>> with RequestQueue(policy, "tiny") as queue:  # doctest: +SKIP
    ...     queue.submit(completion).result()

    Args:
        policy: samples.
        name: under which it is asked for.
        max_slots: sequences under way together.
        max_wait: seconds that a run waits for others to join.
        max_waiting: requests that may wait; further ones are refused.
    """

    def __init__(
        self,
        policy: LMPolicy,
        name: str,
        max_slots: int = MAX_SLOTS,
        max_wait: float = 0.005,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        if max_waiting < 1:
            raise ValueError(f"max_waiting must be at least 1, got {max_waiting}")
        policy.eval()
        self._policy, self.name = policy, name
        engine: Any = engine_for(policy, max_slots, _Cached, _Turnwise)
        engine.eos = min(policy.eos_ids)
        self._engine: Any = engine  # or the turnwise one; both have budgets and eos
        self._max_wait, self._max_waiting = max_wait, max_waiting
        self._adapters: list[str] = []
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._given_up: set[Future[Any]] = set()
        self._arrived = threading.Condition()
        self._closing = False
        self.runs = 0
        """Runs of the engine so far."""
        self._thread = threading.Thread(target=self._work, name="request-queue", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to answer, in a thread that ``close`` ends; it cannot be begun twice."""
        self._thread.start()

    @property
    def models(self) -> list[str]:
        """The names that a request may ask for."""
        return [self.name, *self._adapters]

    @property
    def policy(self) -> LMPolicy:
        """The model and its tokenizer."""
        return self._policy

    def submit(self, completion: Completion) -> Future[Sequence]:
        """Have a turn sampled.

        Raises:
            ValueError: it cannot be; says what must hold.
            QueueFullError: too many wait already.
        """
        self._check(completion)
        job = _Job(completion=completion)
        self._take(job)
        return job.done

    def reload(self, folder: str) -> Future[None]:
        """Take the weights of a Hugging Face folder, behind the runs that began before."""
        return self._changed(lambda: self._reload(folder))

    def load_adapter(self, name: str, folder: str) -> Future[None]:
        """Take a LoRA adapter, in place of one of the same name."""
        return self._changed(lambda: self._load_adapter(name, folder))

    def drop(self, done: Future[Any]) -> None:
        """Give up a request that nobody waits for; one that is under way ends at its next token."""
        if done.cancel():
            with self._arrived:  # those that nobody waits for take no place in the queue
                self._waiting = deque(job for job in self._waiting if job.done is not done)
            return
        if not done.done():
            self._given_up.add(done)
            for row, job in enumerate(self._running):
                if job.done is done:
                    self._engine.budgets[row] = 0

    def close(self, finish: bool = True) -> None:
        """End.

        Args:
            finish: what waits is answered first; otherwise it is given up.
        """
        with self._arrived:
            self._closing = True
            given_up = [] if finish else [*self._running, *self._waiting]
            self._arrived.notify_all()
        for job in given_up:
            self.drop(job.done)
        if self._thread.ident is not None:
            self._thread.join()

    def _changed(self, change: Callable[[], None]) -> Future[None]:
        job = _Job(change=change)
        self._take(job)
        return job.done

    def _take(self, job: _Job) -> None:
        if self._thread.ident is None:
            raise RuntimeError(
                "the queue must have been started before it is asked; use it in a with block"
            )
        with self._arrived:
            if self._closing:
                raise ValueError("the server must be running, but it is stopping")
            if len(self._waiting) >= self._max_waiting:
                raise QueueFullError(f"{len(self._waiting)} requests wait, more may not")
            self._waiting.append(job)
            self._arrived.notify_all()

    def _check(self, completion: Completion) -> None:
        check_params(completion.params)
        embeddings: Any = self._policy.model.get_input_embeddings()
        vocabulary = int(embeddings.weight.shape[0])
        prompt, budget = completion.prompt, completion.params.max_response_tokens
        if not prompt or not all(0 <= i < vocabulary for i in prompt):
            raise ValueError(
                f"prompt must hold token ids in [0, {vocabulary}), at least one; got {len(prompt)} "
                "ids"
            )
        longest = self._policy.max_length
        if longest is not None and len(prompt) + budget > longest:
            raise ValueError(
                f"prompt and max_tokens must fit in the model's {longest} positions, got "
                f"{len(prompt)} + {budget}"
            )

    def _work(self) -> None:
        while jobs := self._next():
            jobs = [job for job in jobs if job.done.set_running_or_notify_cancel()]
            try:
                results = self._results(jobs)
            except Exception as error:
                for job in jobs:
                    job.done.set_exception(error)
                continue
            for job, result in zip(jobs, results, strict=True):
                job.done.set_result(result)

    def _next(self) -> list[_Job]:
        """The first job and those that can run with it; none when all is over."""
        with self._arrived:
            while not self._waiting and not self._closing:
                self._arrived.wait()
        time.sleep(self._max_wait)
        with self._arrived:
            if not self._waiting:
                return []
            jobs = [self._waiting.popleft()]
            kept: deque[_Job] = deque()
            while self._waiting and jobs[0].kind is not None:
                job = self._waiting.popleft()
                (jobs if job.kind == jobs[0].kind else kept).append(job)
                if job.kind is None:  # nothing overtakes a change of weights
                    break
            self._waiting.extendleft(reversed(kept))
            return jobs

    def _results(self, jobs: list[_Job]) -> Seq[Any]:
        if not jobs:
            return []
        if (change := jobs[0].change) is not None:
            change()
            return [None]
        asked = [job.completion for job in jobs if job.completion is not None]
        self._engine.budgets = torch.tensor([one.params.max_response_tokens for one in asked])
        self._running = jobs
        for row, job in enumerate(jobs):
            if job.done in self._given_up:  # between its turn and here
                self._engine.budgets[row] = 0
        try:
            return self._sampled(asked)
        finally:
            self._running = []
            self._given_up.difference_update(job.done for job in jobs)

    def _sampled(self, completions: list[Completion]) -> list[Sequence]:
        first = completions[0]
        budgets = [one.params.max_response_tokens for one in completions]
        params = replace(first.params, max_response_tokens=max(budgets))
        prompts, seeds = [one.prompt for one in completions], [one.seed for one in completions]
        with self._as(first.model):
            sequences: list[Sequence] = self._engine.run(
                prompts, params, lambda rows: [None] * len(rows), seeds
            )
        self.runs += 1
        for sequence, budget in zip(sequences, budgets, strict=True):
            if len(sequence.response_ids) > budget:
                del sequence.response_ids[budget:], sequence.logprobs[budget:]
                del sequence.loss_mask[budget:]
                sequence.finish = "length"
        return sequences

    def _as(self, name: str) -> Any:
        """Inside, the model is the one that was asked for."""
        model: Any = self._policy.model
        if name in self._adapters:
            model.set_adapter(name)
            return nullcontext()
        if name != self.name:
            raise KeyError(name)
        return model.disable_adapter() if self._adapters else nullcontext()

    def _reload(self, folder: str) -> None:
        if self._adapters:
            raise ValueError("weights must be reloaded before adapters are, got adapters already")
        take_weights(self._policy, folder)

    def _load_adapter(self, name: str, folder: str) -> None:
        known = name in self._adapters
        take_adapter(self._policy, name, folder, known)
        if not known:
            self._adapters.append(name)
        self._policy.eval()
