"""A queue of requests from many callers to one model; those that wait are run together.

While a run is under way the next requests gather. Rule: a request gets what it would have got
alone, up to the rounding of another batch.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from research_rl.agents.engines import MAX_SLOTS, check_params
from research_rl.agents.policy import LMPolicy
from research_rl.agents.types import SamplingParams, Sequence
from research_rl.agents.web.ending_rows import ending_engine
from research_rl.agents.web.jobs import JobQueue, QueuedJob
from research_rl.agents.web.weights import take_adapter, take_weights

MAX_WAITING = 4096
"""Requests that wait; a turn of a training run is one."""


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


@dataclass(frozen=True)
class _Work:
    """A turn to sample, or a change of the weights."""

    completion: Completion | None = None
    change: Callable[[], None] | None = None


class RequestQueue(JobQueue[_Work]):
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
        super().__init__(max_wait, max_waiting, "request-queue")
        policy.eval()
        self._policy, self.name = policy, name
        self._engine = ending_engine(policy, self._is_over, max_slots)
        self._budgets = torch.zeros(0, dtype=torch.int64)  # (rows,)
        self._adapters: list[str] = []
        self.runs = 0
        """Runs of the engine so far."""

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
        kind = completion.model, replace(completion.params, max_response_tokens=1 << 30)
        job = QueuedJob(_Work(completion), kind)
        self._take(job)
        return job.done

    def reload(self, folder: str) -> Future[None]:
        """Take the weights of a Hugging Face folder, behind the runs that began before."""
        return self._changed(lambda: self._reload(folder))

    def load_adapter(self, name: str, folder: str) -> Future[None]:
        """Take a LoRA adapter, in place of one of the same name."""
        return self._changed(lambda: self._load_adapter(name, folder))

    def _changed(self, change: Callable[[], None]) -> Future[None]:
        job = QueuedJob(_Work(change=change))  # alone, and nothing overtakes it
        self._take(job)
        return job.done

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

    def _is_over(self, rows: Tensor, positions: Tensor) -> Tensor:
        return positions >= self._budgets[rows]

    def _give_up(self, row: int) -> None:
        self._budgets[row] = 0

    def _results(self, jobs: list[QueuedJob[_Work]]) -> Seq[Any]:
        if (change := jobs[0].work.change) is not None:
            change()
            return [None]
        asked = [job.work.completion for job in jobs if job.work.completion is not None]
        self._budgets = torch.tensor([one.params.max_response_tokens for one in asked])
        with self._under_way(jobs):
            return self._sampled(asked)

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
