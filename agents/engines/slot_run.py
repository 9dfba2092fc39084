"""One run of the cached engine: which sequence has which slot, and what is read and sampled next.

With 80 sequences and 32 slots, 48 wait; each takes over the slot of one that has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from research_rl.agents.engines.sampling import sample, uniforms
from research_rl.agents.engines.slot_forward import SlotForward
from research_rl.agents.engines.stops import Replies, Stops
from research_rl.agents.engines.turns import TurnEnd, check_finite, resume
from research_rl.agents.kernels import SlotCache, Span, flat_batch
from research_rl.agents.types import SamplingParams, Sequence

ShapeLogits = Callable[[Tensor, Tensor, Tensor, SamplingParams], Tensor]
"""(logits (B, V), rows (B,), positions (B,), params) -> the logits (B, V) that are sampled from."""

MAX_SLOTS = 256
"""Sequences under way together, where nobody says otherwise."""
_SPARE = -1
"""Stands for the slot that keeps the prompt of a group of which some still wait."""


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
    stop_calls: int = 0
    """How often on_stop was called."""

    @property
    def prefilled_tokens(self) -> int:
        """Tokens that were read rather than decoded."""
        return self.prompt_tokens + self.result_tokens


@dataclass(frozen=True)
class RunLimits:
    """What bounds a run, and what ends a turn in it."""

    max_slots: int
    """Sequences under way together."""
    max_prefill_tokens: int
    """Tokens of prompts and results in one forward pass."""
    cuda_graphs: bool
    """Whether a decode step is launched at once, where it can be."""
    end: TurnEnd


@dataclass
class _Group:
    """Sequences with the same prompt that wait for a slot."""

    rows: list[int]
    read: bool = False
    """Whether the prompt has been read already, for those who had a slot before."""


@dataclass(frozen=True)
class _Unread:
    """Tokens that are read in the next forward pass."""

    ids: list[int]
    start: int
    rows: list[int]  # _SPARE for the spare slot


class SlotRun:
    """The sequences of one run.

    Slots 0..n-1 decode. Rows that wait for on_stop keep their slots, parked at the other end; what
    lies between is free. What is known on the host (rows, lengths, counts) stays there: a decode
    step waits for the device once, to learn which rows may have ended a turn.

    Args:
        limits: of this run.
        forward: the model that samples.
        sequences: to be sampled, by row.
        params: how.
        seeds: (rows,) int64.
        stops: asks on_stop.
        shape_logits: what the logits become before a token is sampled from them.
    """

    def __init__(
        self,
        limits: RunLimits,
        forward: SlotForward,
        sequences: list[Sequence],
        params: SamplingParams,
        seeds: Tensor,
        stops: Stops,
        shape_logits: ShapeLogits,
    ) -> None:
        self._limits, self._forward, self._stops = limits, forward, stops
        self._sequences, self._params, self._shape_logits = sequences, params, shape_logits
        self.stats = EngineStats()
        groups: dict[tuple[int, ...], _Group] = {}
        for row, s in enumerate(sequences):
            groups.setdefault(tuple(s.prompt_ids), _Group([])).rows.append(row)
        self._waiting = deque(groups.values())
        self._slots = slots = min(limits.max_slots, len(sequences))
        longest, budget = max(len(s.prompt_ids) for s in sequences), params.max_response_tokens
        self._cache = SlotCache(slots + 1, longest + budget)
        self._graphs = forward.recorded(slots) if limits.cuda_graphs else None
        self._unread: list[_Unread] = []
        self._slot: dict[int, int] = {}  # of each row that has one
        self._parked: set[int] = set()
        self._state = torch.zeros(3, slots, dtype=torch.int64)  # on the host
        self._row, self._length, self._count = self._state.unbind()
        device = forward.device
        self._last = torch.zeros(slots, dtype=torch.int64, device=device)
        # the last token stands at position length and is not in the cache yet
        self._seeds = seeds.to(device)
        self._table = limits.end.table.to(device)
        self._ids = torch.zeros(len(sequences), budget, dtype=torch.int32, device=device)
        self._logprobs = torch.zeros(len(sequences), budget, device=device)

    def step(self) -> bool:
        """Give every sequence that can have one a token; return whether any is left."""
        self._admit()
        idle = len(self._slot) == len(self._parked)
        self._resume(self._stops.replies(self.stats.steps, idle))
        if n := len(self._slot) - len(self._parked):
            self._decode(n)
        return bool(self._slot or self._waiting)

    def _admit(self) -> None:
        """Fill the free slots, group by group; a prompt is read by the first who get one."""
        while self._waiting and (room := self._slots - len(self._slot)):
            group = self._waiting[0]
            rows, group.rows = group.rows[:room], group.rows[room:]
            first = len(self._slot) - len(self._parked)
            slots = list(range(first, first + len(rows)))
            self._slot.update(zip(rows, slots, strict=True))
            prompt = self._sequences[rows[0]].prompt_ids
            if group.read:
                self._cache.copy([self._slots] * len(slots), slots, len(prompt) - 1)
            else:
                group.read = True
                self._read_later(prompt[:-1], 0, [*rows, _SPARE] if group.rows else rows)
                self.stats.prompts += 1
                self.stats.prompt_tokens += len(prompt) - 1
            if not group.rows:
                self._waiting.popleft()
            self._row[slots] = torch.tensor(rows)
            self._length[slots], self._count[slots] = len(prompt) - 1, 0
            self._last[first : first + len(rows)] = prompt[-1]

    def _read_later(self, ids: list[int], start: int, rows: list[int]) -> None:
        if ids:
            self._unread.append(_Unread(ids, start, rows))

    def _decode(self, n: int) -> None:
        """Give each of the slots 0..n-1 a token, and see to the turns that ended."""
        rows, count = self._row[:n], self._count[:n]
        logits = self._shape_logits(self._read(n), rows, count, self._params)
        here, at = rows.to(logits.device), count.to(logits.device)
        tokens, logprobs = sample(logits, self._params, uniforms(self._seeds[here], at))
        self._ids[here, at] = tokens.int()
        self._logprobs[here, at] = logprobs
        self._last[:n] = tokens
        seen = self._table[tokens] | ~logprobs.isfinite()
        suspects = seen.nonzero()[:, 0].cpu()  # the one wait for the device
        if len(suspects):
            check_finite(logprobs)
        self._state[1:, :n] += 1  # length and count
        self.stats.steps += 1
        self.stats.sampled_tokens += n
        spent = (self._count[:n] >= self._params.max_response_tokens).nonzero()[:, 0]
        if len(suspects) or len(spent):
            ended: Tensor = torch.unique(torch.cat((suspects, spent)))
            self._end_turns(ended)

    def _read(self, n: int) -> Tensor:
        """Read what is unread and one token of each active slot; logits (n, V) behind it."""
        longest = int(self._length[:n].max()) + 1
        last, lengths = self._last[:n], self._length[:n].to(self._last.device)
        self._cache.reserve(longest)
        if self._graphs is not None and not self._unread:
            return self._graphs(self._cache, last, lengths, longest)
        place = self._slot | {_SPARE: self._slots}
        segments = [Span(u.ids, u.start, [place[r] for r in u.rows]) for u in self._unread]
        self._unread = []
        *early, rest = _packed(segments, self._limits.max_prefill_tokens)
        for some in early:
            self._forward(flat_batch(self._cache, last[:0], lengths[:0], 0, some), 0)
        return self._forward(flat_batch(self._cache, last, lengths, longest, rest), n)

    def _end_turns(self, slots: Tensor) -> None:
        """Judge the sequences that may have ended a turn; park or let go those that have."""
        stopped, over = [], []
        for row in self._collect(slots):
            s = self._sequences[row]
            s.finish = self._limits.end.of(s.turn_ids)
            if s.finish != "running":
                stopped.append(row)
            elif len(s.response_ids) >= self._params.max_response_tokens:
                s.finish = "length"
                over.append(row)
        self._parked.update(stopped)
        self._resume(self._stops.ask(stopped, self.stats.steps) if stopped else [], over)

    def _collect(self, slots: Tensor) -> list[int]:
        """Bring sequences up to date with what their slots have sampled; their rows."""
        rows, count = self._row[slots], self._count[slots]
        start = torch.tensor([len(self._sequences[r].response_ids) for r in rows.tolist()])
        column = start[:, None] + torch.arange(int((count - start).max()))
        column = column.clamp_(max=self._params.max_response_tokens - 1).to(self._ids.device)
        where = rows[:, None].to(self._ids.device), column
        both = torch.stack((self._ids[where].double(), self._logprobs[where].double())).cpu()
        for row, ids, logprobs, size in zip(
            rows.tolist(),
            both[0].long().tolist(),
            both[1].tolist(),
            (count - start).tolist(),
            strict=True,
        ):
            for token, logprob in zip(ids[:size], logprobs[:size], strict=True):
                self._sequences[row].append_sampled(token, logprob)
        return rows.tolist()

    def _resume(self, replies: Replies, over: list[int] | None = None) -> None:
        """Hand replies to the rows that wait for them; free the slots of those that are over."""
        heard = dict(replies)
        self._parked.difference_update(heard)
        going = {r for r, g in heard.items() if resume(self._sequences[r], g, self._params)}
        for row in [*(over or ()), *(heard.keys() - going)]:
            del self._slot[row]
        self._arrange()
        for row, given in heard.items():
            if given and row in going:
                self._append(row, given)

    def _append(self, row: int, given: list[int]) -> None:
        """Have the reply read in the next step; its last token decodes."""
        slot = self._slot[row]
        last = self._sequences[row].response_ids[-len(given) - 1]
        self._read_later([last, *given[:-1]], int(self._length[slot]), [row])
        self.stats.result_tokens += len(given)
        self._state[1:, slot] += len(given)  # length and count
        self._last[slot] = given[-1]

    def _arrange(self) -> None:
        """Have the active rows stand first and the parked ones last, with few moves."""
        parked = range(self._slots - len(self._parked), self._slots)
        active = range(len(self._slot) - len(self._parked))
        moves: list[tuple[int, int, int]] = []  # row, from, to
        for region, rows in ((active, self._slot.keys() - self._parked), (parked, self._parked)):
            strangers = sorted(r for r in rows if self._slot[r] not in region)
            if strangers:
                taken = {self._slot[r] for r in rows}
                holes = [s for s in region if s not in taken]
                moves += [(r, self._slot[r], s) for r, s in zip(strangers, holes, strict=True)]
        if not moves:
            return
        rows_, source, target = (list(column) for column in zip(*moves, strict=True))
        self._cache.copy(source, target, int(self._length[source].max()))
        self._state[:, target] = self._state[:, source]
        self._last[target] = self._last[source]
        self._slot.update(zip(rows_, target, strict=True))


def _packed(segments: list[Span], limit: int) -> list[list[Span]]:
    """Split the segments into passes of at most ``limit`` tokens, or one segment; at least one."""
    passes: list[list[Span]] = [[]]
    tokens = 0
    for segment in segments:
        if passes[-1] and tokens + len(segment.ids) > limit:
            passes.append([])
            tokens = 0
        passes[-1].append(segment)
        tokens += len(segment.ids)
    return passes
