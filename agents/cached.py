"""Sampling with a key-value cache that outlives the searches of a sequence.

A prompt is read once for all sequences that share it; a result is read once, behind what the
sequence's slot holds already; a finished sequence makes room for a waiting one. All of that
happens in the same forward pass in which the others decode their next token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from research_rl.agents.attention import Segment, flat_batch, slots_enabled
from research_rl.agents.engine import evaluating
from research_rl.agents.kv_cache import SlotCache
from research_rl.agents.policy import LMPolicy
from research_rl.agents.sampling import check_params, sample, uniforms
from research_rl.agents.slot_forward import SlotForward
from research_rl.agents.turns import TurnEnd, check_finite, check_prompts, resume, seed_tensor
from research_rl.agents.types import Engine, OnStop, SamplingParams, Sequence


@dataclass
class EngineStats:
    """What one run computed."""

    prompts: int = 0
    """Prompts that were read; equal ones count once."""
    prompt_tokens: int = 0
    """Tokens of those prompts, without the last one of each, which decodes."""
    result_tokens: int = 0
    """Tokens read behind a search."""
    sampled_tokens: int = 0
    steps: int = 0
    """Decode steps."""

    @property
    def prefilled_tokens(self) -> int:
        """Tokens that were read rather than decoded."""
        return self.prompt_tokens + self.result_tokens


class CachedEngine(Engine):
    """Continuous batching over unmodified transformers models.

    The cache lives as long as one run: the weights may change between runs.

    Args:
        policy: whose weights sample. No other thread may use its model during a run.
        max_slots: sequences that decode together; the cache grows with it.
        max_prefill_tokens: tokens of prompts and results in one forward pass.
    """

    def __init__(
        self, policy: LMPolicy, max_slots: int = 256, max_prefill_tokens: int = 8192
    ) -> None:
        if max_slots < 1 or max_prefill_tokens < 1:
            raise ValueError(
                "max_slots and max_prefill_tokens must be at least 1, "
                f"got {max_slots} and {max_prefill_tokens}"
            )
        self._policy = policy
        self._checked = False
        self.max_slots = max_slots
        self.max_prefill_tokens = max_prefill_tokens
        self.forward = SlotForward(policy)
        self.end = TurnEnd(policy, SamplingParams().stop)
        self.stats = EngineStats()

    @torch.no_grad()
    def run(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams,
        on_stop: OnStop,
        seeds: Seq[int] | None = None,
    ) -> list[Sequence]:
        """See Engine.run.

        Raises:
            NotImplementedError: the model computes something that the cache cannot, e.g. a
                recurrent state.
        """
        check_params(params)
        check_prompts(prompts)
        self.stats = EngineStats()
        if not prompts:
            return []
        if self.end.stop != tuple(params.stop):
            self.end = TurnEnd(self._policy, params.stop)
        with evaluating(self._policy.model):
            if not self._checked:
                self.forward.check()
                self._checked = True
            sequences = [Sequence(list(p)) for p in prompts]
            run = _Run(self, sequences, params, seed_tensor(seeds, len(prompts)))
            with slots_enabled(self.forward.model):
                while run.step(on_stop):
                    pass
        return sequences


@dataclass
class _Group:
    """Sequences with the same prompt that wait for a slot."""

    rows: list[int]
    read: bool = False
    """Whether the prompt has been read already, for those who had a slot before."""


class _Run:
    """The sequences of one run; slots 0..n-1 are always the ones in use."""

    def __init__(
        self,
        engine: CachedEngine,
        sequences: list[Sequence],
        params: SamplingParams,
        seeds: Tensor,
    ) -> None:
        self._forward, self._end, self._stats = engine.forward, engine.end, engine.stats
        self._max_prefill_tokens = engine.max_prefill_tokens
        self._sequences, self._params = sequences, params
        groups: dict[tuple[int, ...], _Group] = {}
        for row, s in enumerate(sequences):
            groups.setdefault(tuple(s.prompt_ids), _Group([])).rows.append(row)
        self._waiting = deque(groups.values())
        self._slots = min(engine.max_slots, len(sequences))
        longest, budget = max(len(s.prompt_ids) for s in sequences), params.max_response_tokens
        self._cache = SlotCache(self._slots + 1, longest + budget)
        self._spare = self._slots  # keeps the prompt of a group of which some still wait
        self._segments: list[Segment] = []
        self._active: list[int] = []  # the row in each slot
        device = engine.forward.device
        positions = torch.arange(budget, device=device)
        self._uniforms = uniforms(seeds.to(device)[:, None], positions)  # (rows, budget)
        self._table = engine.end.table.to(device)
        self._ids = torch.zeros(len(sequences), budget, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(len(sequences), budget, device=device)
        self._state = torch.zeros(4, self._slots, dtype=torch.int64, device=device)
        self._row, self._last, self._length, self._count = self._state.unbind()
        # the last token stands at position length and is not in the cache yet

    def step(self, on_stop: OnStop) -> bool:
        """Give every active sequence one token; return whether any is left."""
        self._admit()
        n = len(self._active)
        logits = self._read(n)
        rows, count = self._row[:n], self._count[:n]
        tokens, logprobs = sample(logits, self._params, self._uniforms[rows, count])
        check_finite(logprobs)
        self._ids[rows, count] = tokens
        self._logprobs[rows, count] = logprobs
        self._last[:n] = tokens
        self._state[2:, :n] += 1  # length and count
        self._stats.steps += 1
        self._stats.sampled_tokens += n
        ended = self._table[tokens] | (count >= self._params.max_response_tokens)
        if slots := ended.nonzero()[:, 0].tolist():
            self._end_turns(slots, on_stop)
        return bool(self._active or self._waiting)

    def _admit(self) -> None:
        """Fill the free slots, group by group; a prompt is read by the first who get one."""
        while self._waiting and (room := self._slots - len(self._active)):
            group = self._waiting[0]
            rows, group.rows = group.rows[:room], group.rows[room:]
            first = len(self._active)
            self._active += rows
            slots = list(range(first, len(self._active)))
            prompt = self._sequences[rows[0]].prompt_ids
            if group.read:
                self._cache.copy([self._spare] * len(slots), slots, len(prompt) - 1)
            else:
                group.read = True
                shared = [*slots, self._spare] if group.rows else slots
                self._add_segment(prompt[:-1], 0, shared)
                self._stats.prompts += 1
                self._stats.prompt_tokens += len(prompt) - 1
            if not group.rows:
                self._waiting.popleft()
            new = slice(first, len(self._active))
            self._row[new] = torch.tensor(rows, device=self._state.device)
            self._last[new], self._length[new], self._count[new] = prompt[-1], len(prompt) - 1, 0

    def _add_segment(self, ids: list[int], start: int, slots: list[int]) -> None:
        if ids:
            self._segments.append(Segment(ids, start, slots))

    def _read(self, n: int) -> Tensor:
        """Read the new segments and one token of each active slot; logits (n, V) behind it."""
        last, lengths = self._last[:n], self._length[:n]
        longest = int(lengths.max()) + 1
        self._cache.reserve(longest)
        *early, segments = _packed(self._segments, self._max_prefill_tokens)
        self._segments = []
        for some in early:
            self._forward(flat_batch(self._cache, last[:0], lengths[:0], 0, some), 0)
        return self._forward(flat_batch(self._cache, last, lengths, longest, segments), n)

    def _end_turns(self, slots: list[int], on_stop: OnStop) -> None:
        """Judge the sequences that may have ended a turn; let go those that are over."""
        stopped, over = [], []
        for slot, count in zip(slots, self._count[slots].tolist(), strict=True):
            s = self._collect(slot, count)
            s.finish = self._end.of(s.turn_ids)
            if s.finish != "running":
                stopped.append((self._active[slot], slot))
            elif count >= self._params.max_response_tokens:
                s.finish = "length"
                over.append(slot)
        replies = self._ask(stopped, on_stop)
        over += [slot for slot, given in replies if given is None]
        moved = self._let_go(over)
        for slot, given in replies:
            if given:
                self._append(moved.get(slot, slot), given)

    def _ask(
        self, stopped: list[tuple[int, int]], on_stop: OnStop
    ) -> list[tuple[int, list[int] | None]]:
        """Hand the (row, slot) pairs that ended a turn over; (slot, ids or None) of each."""
        if not stopped:
            return []
        stopped.sort()
        pairs = [(row, self._sequences[row]) for row, _ in stopped]
        return [
            (slot, given if resume(self._sequences[row], given, self._params) else None)
            for (row, slot), given in zip(stopped, on_stop(pairs), strict=True)
        ]

    def _append(self, slot: int, given: list[int]) -> None:
        """Have the reply read in the next step; its last token decodes."""
        last, start = int(self._last[slot]), int(self._length[slot])
        self._add_segment([last, *given[:-1]], start, [slot])
        self._stats.result_tokens += len(given)
        self._state[2:, slot] += len(given)  # length and count
        self._last[slot] = given[-1]

    def _let_go(self, over: list[int]) -> dict[int, int]:
        """Free slots and close the gaps; where the slots that moved are now."""
        if not over:
            return {}
        n = len(self._active) - len(over)
        gone = set(over)
        target = sorted(slot for slot in over if slot < n)
        source = [slot for slot in range(n, len(self._active)) if slot not in gone]
        if source:
            self._cache.copy(source, target, int(self._length[source].max()))
            self._state[:, target] = self._state[:, source]
            for a, b in zip(source, target, strict=True):
                self._active[b] = self._active[a]
        del self._active[n:]
        return dict(zip(source, target, strict=True))

    def _collect(self, slot: int, count: int) -> Sequence:
        """Bring a sequence up to date with what its slot has sampled."""
        row = self._active[slot]
        s = self._sequences[row]
        new = slice(len(s.response_ids), count)
        ids, logprobs = self._ids[row, new].tolist(), self._logprobs[row, new].tolist()
        for token, logprob in zip(ids, logprobs, strict=True):
            s.append_sampled(token, logprob)
        return s


def _packed(segments: list[Segment], limit: int) -> list[list[Segment]]:
    """Split the segments into passes of at most ``limit`` tokens, or one segment; at least one."""
    passes: list[list[Segment]] = [[]]
    tokens = 0
    for segment in segments:
        if passes[-1] and tokens + len(segment.ids) > limit:
            passes.append([])
            tokens = 0
        passes[-1].append(segment)
        tokens += len(segment.ids)
    return passes
