"""Decode steps as CUDA graphs: one launch a step instead of some hundred.

A small model on a GPU waits for its launches. A graph is recorded once for each number of rows and
of keys, both rounded up, and lives as long as the cache's tensors do. Rows that only fill up write
to a place that nothing reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from research_rl.agents.kernels import Block, FlatBatch, SlotCache

RecordFn = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs a function and returns what runs it again, on what its tensors hold by then."""
_KEYS = 256
_ROWS = 32


def recorder(device: torch.device) -> RecordFn | None:
    """What records on a kind of device; None where nothing can."""
    return _CudaRecord() if device.type == "cuda" else None


class _CudaRecord:
    """Records CUDA graphs that share their memory, as no two of them run at once."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up on their first calls
            function()
            function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        replay: Callable[[], None] = graph.replay
        return replay


@dataclass
class _Inputs:
    """What a graph reads, of as many rows as there are slots."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    places: Tensor

    def first(self, rows: int) -> _Inputs:
        """The first rows, the same memory."""
        return _Inputs(*(x[:rows] for x in (self.ids, self.positions, self.slots, self.places)))


class DecodeGraphs:
    """Decode steps of one run.

    Args:
        call: the model: logits (count, V) of the first tokens of a flat batch.
        record: makes the graphs.
        slots: sequences that can decode together; the cache has one more slot.
    """

    def __init__(
        self, call: Callable[[FlatBatch, int], Tensor], record: RecordFn, slots: int
    ) -> None:
        self._call, self._record, self._slots = call, record, slots
        self._graphs: dict[tuple[int, int], Callable[[], None]] = {}
        self._capacity = 0
        self._inputs: _Inputs | None = None
        self._logits: Tensor | None = None

    def __call__(self, cache: SlotCache, last: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """Logits (n, V) of one token each of the slots 0..n-1; overwritten by the next call.

        Args:
            cache: with room for the longest.
            last: (n,) the tokens.
            lengths: (n,) their positions.
            longest: the largest of lengths, plus one.
        """
        if cache.capacity != self._capacity:  # its tensors are other ones now
            self._graphs.clear()
            self._capacity = cache.capacity
        n = len(last)
        rows, keys = self._rows(n), min(cache.capacity, -(-longest // _KEYS) * _KEYS)
        inputs = self._filled(last, lengths, rows)
        if (rows, keys) in self._graphs:
            self._graphs[rows, keys]()
        else:
            self._graphs[rows, keys] = self._recorded(cache, inputs, keys)
        assert self._logits is not None
        return self._logits[:n]

    def _rows(self, n: int) -> int:
        grain = _ROWS if n > _ROWS else 8
        return min(self._slots, -(-n // grain) * grain)

    def _filled(self, last: Tensor, lengths: Tensor, rows: int) -> _Inputs:
        if self._inputs is None:
            self._inputs = _Inputs(*(last.new_zeros(self._slots) for _ in range(4)))
        inputs, n = self._inputs.first(rows), len(last)
        inputs.ids[:n], inputs.positions[:n] = last, lengths
        inputs.slots[:n] = torch.arange(n, device=last.device)
        inputs.places[:n] = lengths
        inputs.ids[n:], inputs.positions[n:] = 0, 0
        inputs.slots[n:], inputs.places[n:] = self._slots, self._capacity - 1
        return inputs

    def _recorded(self, cache: SlotCache, inputs: _Inputs, keys: int) -> Callable[[], None]:
        rows = len(inputs.ids)
        tokens = torch.arange(rows, device=inputs.ids.device)

        def step() -> None:
            block = Block(tokens[:, None], slice(0, rows), keys)  # with a mask of this step
            batch = FlatBatch(
                cache, inputs.ids, inputs.positions, [block], None, inputs.slots, inputs.places
            )
            logits = self._call(batch, rows)
            if self._logits is None:  # of all graphs, so that none keeps its own
                self._logits = logits.new_empty(self._slots, logits.shape[1])
            self._logits[:rows] = logits

        if self._logits is None:
            step()  # what stays must not be made while a graph is recorded
        return self._record(step)
