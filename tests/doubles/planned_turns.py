"""Engines whose turns end where a plan says, so that every token that is read can be counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from research_rl.agents.types import OnStop, SamplingParams, Sequence


class ThreeTurns:
    """Three turns of ``written`` tokens: two end in a search, the last in an end of sequence.

    Stands before an engine among the bases of a class.
    """

    written: int
    """Tokens of a turn."""
    given: int
    """Tokens of a result."""
    end: Any
    _policy: Any

    def shape_logits(
        self, logits: Tensor, rows: Tensor, positions: Tensor, params: SamplingParams
    ) -> Tensor:
        """See CachedEngine."""
        stop, eos = (self._policy.encode("</search>")[0], min(self._policy.eos_ids))
        logits = logits.masked_fill(self.end.table, -torch.inf)
        for row, position in enumerate(positions.tolist()):
            turn, place = divmod(position, self.written + self.given)
            if place == self.written - 1:
                logits[row] = -torch.inf
                logits[row, eos if turn == 2 else stop] = 0.0
        return logits


def planned_prompts(length: int, questions: int, each: int) -> list[list[int]]:
    """Different prompts of so many tokens, each of them several times in a row."""
    prompts = [[(11 * i + j) % 200 for j in range(length)] for i in range(questions)]
    return [prompt for prompt in prompts for _ in range(each)]


def answering(given: int) -> OnStop:
    """What answers each search with so many tokens."""
    result = [j % 200 for j in range(given)]

    def on_stop(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
        return [result if s.finish == "stop" else None for _, s in stopped]

    return on_stop
