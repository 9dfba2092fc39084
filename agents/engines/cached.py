"""Sampling with a key-value cache that outlives the searches of a sequence.

A prompt is read once for all sequences that share it; a result is read once, behind what the
sequence's slot holds already; a finished sequence makes room for a waiting one. All of that
happens in the same forward pass in which the others decode their next token.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from research_rl.agents.engines.sampling import suppress_ends
from research_rl.agents.engines.sampling_copy import SamplingCopies, is_copy_needed
from research_rl.agents.engines.slot_forward import SlotForward
from research_rl.agents.engines.slot_run import MAX_SLOTS, EngineStats, RunLimits, SlotRun
from research_rl.agents.engines.stops import Coalescing, DirectStops, OverlappedStops, Stops
from research_rl.agents.engines.turns import TurnEnd, begin
from research_rl.agents.kernels import slots_enabled
from research_rl.agents.machine import chosen_dtype, dtype_of
from research_rl.agents.policy import LMPolicy, evaluating
from research_rl.agents.types import Engine, OnStop, SamplingParams, Sequence


def prefill_tokens(device: str) -> int:
    """Tokens of prompts and results in one forward pass on a kind of device, unless set."""
    return 512 if device == "cpu" else 8192


class CachedEngine(Engine):
    """Continuous batching over unmodified transformers models.

    The cache, and the copy of the weights where there is one, live as long as one run: the weights
    may change between runs.

    Args:
        policy: whose weights sample. No other thread may use its model during a run.
        max_slots: sequences that are under way together, those that wait for a search included;
            the cache grows with it.
        max_prefill_tokens: tokens of prompts and results in one forward pass; None is 8192, and
            512 on a CPU, so that what is made on the way stays in its cache.
        dtype: sample from a copy of the weights in this dtype, adapters merged; the log-probs of
            the sequences are the copy's. auto is the machine's fastest, see ``fast_dtype``. None
            samples from the policy's own weights.
        overlap_searches: let the other sequences decode while some wait for on_stop, which then
            runs in a thread of its own, for several sequences at once. Worth it where a search
            takes longer than a few decode steps.
        deterministic: take the replies up a fixed number of decode steps after they were asked
            for, so that what is computed together never depends on the clock; False takes them
            as they arrive.
        coalescing: how many searches go together, and when.
        cuda_graphs: on a GPU, launch a whole decode step at once; of models that ``decoder_of``
            knows. Elsewhere it changes nothing.
    """

    def __init__(
        self,
        policy: LMPolicy,
        max_slots: int = MAX_SLOTS,
        max_prefill_tokens: int | None = None,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = None,
        overlap_searches: bool = False,
        deterministic: bool = True,
        coalescing: Coalescing = Coalescing(),  # noqa: B008  (frozen)
        cuda_graphs: bool = False,
    ) -> None:
        if max_slots < 1 or (max_prefill_tokens is not None and max_prefill_tokens < 1):
            raise ValueError(
                "max_slots and max_prefill_tokens must be at least 1, "
                f"got {max_slots} and {max_prefill_tokens}"
            )
        self._policy = policy
        if dtype is not None:
            dtype_of(dtype)  # refuses a name that is none
        self._dtype = dtype
        self._copies = SamplingCopies()
        self.cuda_graphs = cuda_graphs
        self._checked = False
        self._overlap = overlap_searches
        self._deterministic, self._coalescing = deterministic, coalescing
        self.max_slots = max_slots
        self._max_prefill_tokens = max_prefill_tokens
        self.end = TurnEnd(policy, SamplingParams().stops)
        self.stats = EngineStats()

    @property
    def dtype(self) -> torch.dtype | None:
        """What it samples in; None is the weights' own."""
        return chosen_dtype(self._dtype, self._policy.device, "engine.dtype")

    @property
    def max_prefill_tokens(self) -> int:
        """Tokens of prompts and results in one forward pass."""
        return self._max_prefill_tokens or prefill_tokens(self._policy.device.type)

    @torch.no_grad()
    def run(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams,
        on_stop: OnStop,
        seeds: Seq[int] | None = None,
    ) -> list[Sequence]:
        """See Engine.run; what on_stop raises is raised as it is.

        Raises:
            NotImplementedError: the model computes something that the cache cannot, e.g. a
                recurrent state.
        """
        sequences, seed = begin(prompts, params, seeds)
        self.stats = EngineStats()
        if not sequences:
            return []
        self.end = self.end.at(params.stops)
        with evaluating(self._policy.model), self._stops(on_stop, sequences) as stops:
            forward = self._forward()
            limits = RunLimits(self.max_slots, self.max_prefill_tokens, self.cuda_graphs, self.end)
            # inference mode is quicker, but what a model keeps of it cannot be learned with
            without: Any = torch.no_grad() if forward.own else torch.inference_mode()
            with slots_enabled(forward.model), without:
                run = SlotRun(limits, forward, sequences, params, seed, stops, self.shape_logits)
                self.stats = run.stats
                while run.step():
                    pass
        return sequences

    @torch.no_grad()
    def check(self) -> None:
        """Find out whether the model can be sampled from; the first run does so too.

        Raises:
            NotImplementedError: it cannot; see ``run``.
        """
        with evaluating(self._policy.model):
            self._check(SlotForward(self._policy.model))

    def _check(self, forward: SlotForward) -> None:
        if not self._checked:
            forward.check()
            self._checked = True

    def shape_logits(
        self, logits: Tensor, rows: Tensor, positions: Tensor, params: SamplingParams
    ) -> Tensor:
        """Logits (B, V) that are sampled from: the model's, ends suppressed where it is too early.

        A subclass that forces tokens overrides this; the log-probs are those of what it returns.

        Args:
            logits: (B, V).
            rows: (B,) which prompts they belong to, on the host.
            positions: (B,) how many tokens their responses hold, on the host.
            params: of the run.
        """
        if not bool((positions < params.min_new_tokens).any()):
            return logits
        device = logits.device
        return suppress_ends(logits, self.end.table.to(device), positions.to(device), params)

    def _forward(self) -> SlotForward:
        """The model to sample from, as the weights are now."""
        policy: Any = self._policy.model
        own = SlotForward(policy)
        self._check(own)
        model: nn.Module = own.model
        dtype = self.dtype
        if dtype is None or not is_copy_needed(model, dtype):
            return own
        shared = any(weight.dtype == dtype for weight in model.parameters())
        on_cpu = own.device.type == "cpu"  # where products are packed, which copies them anyway
        copy = self._copies.made(model, dtype)
        return SlotForward(copy, own=False, keeps=shared and not on_cpu)

    @contextmanager
    def _stops(self, on_stop: OnStop, sequences: list[Sequence]) -> Iterator[Stops]:
        stops: Stops
        if self._overlap:
            stops = OverlappedStops(on_stop, sequences, self._coalescing, self._deterministic)
        else:
            stops = DirectStops(on_stop, sequences)
        try:
            yield stops
        finally:
            stops.close()
            self.stats.stop_calls = stops.calls
