"""Sampling turn by turn with transformers' own cache, for models that the cached engine refuses.

A prompt is read once for all sequences that share it, a result once behind what its sequence has
read; tokens in between are decoded together. So models with convolutions, linear attention or
recurrent states sample without reading everything again for each token.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from research_rl.agents.engines.cache_forward import (
    CachedRows,
    CacheForward,
    CacheWays,
    chosen,
    joined_rows,
)
from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.engines.reference import ReferenceEngine
from research_rl.agents.engines.sampling import sample, suppress_ends, uniforms
from research_rl.agents.engines.sampling_copy import SamplingCopies, is_copy_needed
from research_rl.agents.engines.slot_run import MAX_SLOTS, EngineStats
from research_rl.agents.engines.turns import TurnEnd, begin, check_finite, resume
from research_rl.agents.machine import chosen_dtype, dtype_of
from research_rl.agents.policy import LMPolicy, evaluating
from research_rl.agents.types import Engine, OnStop, SamplingParams, Sequence

log = logging.getLogger(__name__)
_ROUNDING = 1e-4
"""Part of the spread of float32 logits that rounding explains."""


class TurnwiseEngine(Engine):
    """Decodes with the cache that a transformers model makes itself.

    Before its first run it finds out, against the stock forward pass, what the model's cache can
    do: whether a result is read behind it at once, else token by token beside what decodes; whether
    sequences of different lengths decode together, else those of equal length, or each alone. Where
    no cache is to be trusted, everything is read again for each token, as ReferenceEngine does.
    What costs time is said in the log.

    Args:
        policy: whose weights sample. No other thread may use its model during a run.
        max_slots: sequences that are under way together; memory grows with it.
        dtype: sample from a copy of the weights in this dtype, adapters merged; the log-probs of
            the sequences are the copy's. auto is the machine's fastest, see ``fast_dtype``. None
            samples from the policy's own weights.
    """

    def __init__(
        self,
        policy: LMPolicy,
        max_slots: int = MAX_SLOTS,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = None,
    ) -> None:
        if max_slots < 1:
            raise ValueError(f"max_slots must be at least 1, got {max_slots}")
        self._policy, self.max_slots = policy, max_slots
        if dtype is not None:
            dtype_of(dtype)  # refuses a name that is none
        self._dtype = dtype
        self._copies = SamplingCopies()
        self.end = TurnEnd(policy, SamplingParams().stops)
        self._ways: CacheWays | None = None
        self._untrusted = False
        self.stats = EngineStats()

    @property
    def dtype(self) -> torch.dtype | None:
        """What it samples in; None is the weights' own."""
        return chosen_dtype(self._dtype, self._policy.device, "engine.dtype")

    @torch.no_grad()
    def run(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams,
        on_stop: OnStop,
        seeds: Seq[int] | None = None,
    ) -> list[Sequence]:
        """See Engine.run."""
        sequences, seed = begin(prompts, params, seeds)
        self.stats = EngineStats()
        if not prompts:
            return []
        if self.end.stop != params.stops:
            self.end = TurnEnd(self._policy, params.stops)
        with evaluating(self._policy.model):
            model = self._model()
            if (forward := self._forward(model)) is None:
                sampler = LMPolicy(model, self._policy.tokenizer)
                return ReferenceEngine(sampler).run(prompts, params, on_stop, seeds)
            run = _Run(self, forward, sequences, params, seed, on_stop)
            while run.step():
                pass
        return sequences

    def shape_logits(
        self, logits: Tensor, rows: Tensor, positions: Tensor, params: SamplingParams
    ) -> Tensor:
        """Logits (n, V) that are sampled from; see CachedEngine.shape_logits."""
        return suppress_ends(
            logits, self.end.table.to(logits.device), positions.to(logits.device), params
        )

    def _model(self) -> Any:
        """The model to sample from, as the weights are now: the policy's, or a copy of it."""
        whole: Any = self._policy.model
        model: Any = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
        dtype = self.dtype
        if dtype is None or not is_copy_needed(model, dtype):
            return whole
        return self._copies.made(model, dtype)

    def _forward(self, model: Any) -> CacheForward | None:
        """How the model is called; None where its cache is not to be trusted."""
        if self._untrusted:
            return None
        forward = CacheForward(model, self._ways)
        if self._ways is not None:
            return forward
        try:
            self._ways = forward.check()
        except NotImplementedError as error:
            self._untrusted = True
            log.warning("everything is read again for each token: %s", error)
            return None
        if self._ways is not None:
            _say(forward)
        return forward


def engine_for(
    policy: LMPolicy,
    max_slots: int = 256,
    cached: type[CachedEngine] = CachedEngine,
    turnwise: type[TurnwiseEngine] = TurnwiseEngine,
) -> CachedEngine | TurnwiseEngine:
    """Return the quickest engine that fits a model: what is taken where none is configured.

    The cached engine is tried with three short texts. Where it refuses the model, the turnwise one
    is taken, and the log says so with the reason.

    Args:
        policy: whose weights sample.
        max_slots: sequences that are under way together.
        cached: a subclass of CachedEngine, to sample in a way of one's own.
        turnwise: a subclass of TurnwiseEngine that samples in the same way.
    """
    first = cached(policy, max_slots)
    try:
        first.check()
    except NotImplementedError as error:
        log.warning("sampling with TurnwiseEngine, turn by turn: %s", error)
        return turnwise(policy, max_slots)
    log.info("sampling with CachedEngine, which fits %s", type(policy.model).__name__)
    return first


def _say(forward: CacheForward) -> None:
    """Tell in the log what a model's cache cannot do, for it costs time or exactness."""
    name, ways = type(forward.model).__name__, forward.ways
    full = next(forward.model.parameters()).dtype in (torch.float32, torch.float64)
    if full and ways.gap > _ROUNDING:
        log.warning(
            "%s computes something else with its cache than without: logits differ by %.2g of "
            "their spread, and sampled log-probs with them",
            name,
            ways.gap,
        )
    if not ways.reads_on:
        log.warning(
            "the cache of %s takes one token at a time: results are read so, beside what decodes",
            name,
        )
    if ways.joins == "equal":
        log.warning("the caches of %s only join at equal length: fewer decode together", name)
    if ways.joins == "none":
        log.warning("the caches of %s cannot be joined: each sequence decodes alone", name)


@dataclass
class _Batch:
    """Sequences that decode together, and what the model says of their next tokens."""

    rows: list[int]
    held: CachedRows
    logits: Tensor  # (n, V)


class _Run:
    """The sequences of one run.

    Args:
        engine: its limits; takes the counts.
        forward: the model that samples.
        sequences: to be sampled, by row.
        params: how.
        seeds: (rows,) int64.
        on_stop: what is asked about turns that ended.
    """

    def __init__(
        self,
        engine: TurnwiseEngine,
        forward: CacheForward,
        sequences: list[Sequence],
        params: SamplingParams,
        seeds: Tensor,
        on_stop: OnStop,
    ) -> None:
        self._engine, self._forward, self._sequences = engine, forward, sequences
        self._params, self._seeds, self._on_stop = params, seeds, on_stop
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, s in enumerate(sequences):
            groups.setdefault(tuple(s.prompt_ids), []).append(row)
        self._waiting = deque(groups.values())
        self._prompt: tuple[Tensor, CachedRows] | None = None  # of the group that is let in
        self._batches = self._arranged(self._admitted(0))

    def step(self) -> bool:
        """Give every sequence that is under way a token; return whether any is left."""
        ended = [row for batch in self._batches for row in self._sampled(batch)]
        resumed = self._asked(ended) if ended else set()
        at_once = resumed if self._forward.ways.reads_on else set()
        batches: list[_Batch] = []
        for batch in self._batches:
            rows = [self._sequences[row].finish == "running" for row in batch.rows]
            going = [i for i, goes_on in enumerate(rows) if goes_on]
            reading = [i for i in going if batch.rows[i] in at_once]
            batches += [self._read_on(batch.rows[i], chosen(batch.held, [i])) for i in reading]
            if stepping := [i for i in going if i not in reading]:
                batches.append(self._stepped(batch, stepping))
        under_way = sum(len(batch.rows) for batch in batches)
        self._batches = self._arranged([*batches, *self._admitted(under_way)])
        return bool(self._batches)

    def _admitted(self, under_way: int) -> list[_Batch]:
        """Those that come in, group by group; a prompt is read once."""
        found, room = [], self._engine.max_slots - under_way
        while self._waiting and room:
            group = self._waiting[0]
            if self._prompt is None:
                ids = self._sequences[group[0]].prompt_ids
                self._prompt = self._forward.read(ids)
                self._engine.stats.prompts += 1
                self._engine.stats.prompt_tokens += len(ids)
            logits, held = self._prompt
            rows, group[:room] = group[:room], []
            together = len(rows) if self._forward.ways.joins != "none" else 1
            for first in range(0, len(rows), together):
                some = rows[first : first + together]
                twins = joined_rows([held] * len(some))
                found.append(_Batch(some, twins, logits.expand(len(some), -1)))
            room -= len(rows)
            if not group:
                self._waiting.popleft()
                self._prompt = None
        return found

    def _arranged(self, batches: list[_Batch]) -> list[_Batch]:
        """The same sequences in as few batches as the model's cache allows."""
        joins = self._forward.ways.joins
        batches = [batch for batch in batches if batch.rows]
        if joins == "none":
            return batches
        alike: dict[int, list[_Batch]] = {}
        for batch in batches:
            alike.setdefault(batch.held.lengths[0] if joins == "equal" else 0, []).append(batch)
        return [same[0] if len(same) == 1 else _joined(same) for same in alike.values()]

    def _sampled(self, batch: _Batch) -> list[int]:
        """Give a token to each sequence that is read to its end; the rows whose turn ended."""
        read = zip(batch.rows, batch.held.lengths, strict=True)
        places = [i for i, (row, length) in enumerate(read) if length == self._length(row)]
        if not places:
            return []
        rows = torch.tensor(batch.rows)[places]
        sequences = [self._sequences[row] for row in rows.tolist()]
        positions = torch.tensor([len(s.response_ids) for s in sequences])
        logits = batch.logits if len(places) == len(batch.rows) else batch.logits[places]
        logits = self._engine.shape_logits(logits, rows, positions, self._params)
        uniform = uniforms(self._seeds[rows], positions).to(logits.device)
        tokens, logprobs = sample(logits, self._params, uniform)
        check_finite(logprobs)
        self._engine.stats.sampled_tokens += len(sequences)
        drawn = zip(sequences, tokens.tolist(), logprobs.tolist(), strict=True)
        for sequence, token, logprob in drawn:
            sequence.append_sampled(token, logprob)
            sequence.finish = self._engine.end.of(sequence.turn_ids)
            over = len(sequence.response_ids) >= self._params.max_response_tokens
            if sequence.finish == "running" and over:
                sequence.finish = "length"
        ends = zip(rows.tolist(), sequences, strict=True)
        return [row for row, s in ends if s.finish in ("stop", "eos")]

    def _length(self, row: int) -> int:
        """Tokens of a sequence, those that are not read yet included."""
        sequence = self._sequences[row]
        return len(sequence.prompt_ids) + len(sequence.response_ids)

    def _asked(self, ended: list[int]) -> set[int]:
        """Have the turns of these rows answered; the rows that go on."""
        rows, stats = sorted(ended), self._engine.stats
        stats.stop_calls += 1
        replies = self._on_stop([(row, self._sequences[row]) for row in rows])
        resumed = set()
        for row, given in zip(rows, replies, strict=True):
            if resume(self._sequences[row], given, self._params):
                stats.result_tokens += len(given or ())
                resumed.add(row)
        return resumed

    def _stepped(self, batch: _Batch, places: list[int]) -> _Batch:
        """Some of a batch, each with its next token read: the sampled one, or one of a result."""
        self._engine.stats.steps += 1
        rows = [batch.rows[i] for i in places]
        held = batch.held if len(rows) == len(batch.rows) else chosen(batch.held, places)
        sequences = [self._sequences[row] for row in rows]
        unread = zip(sequences, held.lengths, strict=True)
        tokens = [s.response_ids[length - len(s.prompt_ids)] for s, length in unread]
        logits, held = self._forward.step(torch.tensor(tokens, device=self._forward.device), held)
        return _Batch(rows, held, logits)

    def _read_on(self, row: int, held: CachedRows) -> _Batch:
        """A sequence with all of it read: the last token of its turn, and a result."""
        sequence = self._sequences[row]
        unread = sequence.response_ids[held.lengths[0] - len(sequence.prompt_ids) :]
        logits, held = self._forward.read(unread, held)
        return _Batch([row], held, logits)


def _joined(batches: list[_Batch]) -> _Batch:
    return _Batch(
        [row for batch in batches for row in batch.rows],
        joined_rows([batch.held for batch in batches]),
        torch.cat([batch.logits for batch in batches]),
    )
