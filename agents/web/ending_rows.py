"""Engines that can be told, in the middle of a run, to end some of their sequences.

A row that is over writes nothing but an end of sequence: a request has used its own budget up, or
nobody waits for it any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from research_rl.agents.engines import MAX_SLOTS, CachedEngine, TurnwiseEngine, engine_for
from research_rl.agents.policy import LMPolicy
from research_rl.agents.types import Engine, SamplingParams

IsOver: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(rows (B,), positions (B,)) -> which of them are over (B,) bool; all on the host."""


class _EndsRows:
    eos = 0

    @staticmethod
    def is_over(rows: Tensor, positions: Tensor) -> Tensor:
        """Which rows are over: none, until another function is put here."""
        return torch.zeros_like(rows, dtype=torch.bool)

    def ended(self, logits: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Logits (B, V) that are sampled from."""
        over = self.is_over(rows, positions)
        if bool(over.any()):
            logits = logits.clone()
            where = over.to(logits.device)
            logits[where] = -torch.inf
            logits[where, self.eos] = 0.0
        return logits


class _Cached(_EndsRows, CachedEngine):
    def shape_logits(
        self, logits: Tensor, rows: Tensor, positions: Tensor, params: SamplingParams
    ) -> Tensor:
        """See CachedEngine."""
        logits = super().shape_logits(logits, rows, positions, params)
        return self.ended(logits, rows, positions)


class _Turnwise(_EndsRows, TurnwiseEngine):
    def shape_logits(
        self, logits: Tensor, rows: Tensor, positions: Tensor, params: SamplingParams
    ) -> Tensor:
        """See TurnwiseEngine."""
        logits = super().shape_logits(logits, rows, positions, params)
        return self.ended(logits, rows, positions)


def ending_engine(policy: LMPolicy, is_over: IsOver, max_slots: int = MAX_SLOTS) -> Engine:
    """Return the quickest engine that fits a model and ends rows as soon as they are over.

    Args:
        policy: whose weights sample.
        is_over: asked at each step.
        max_slots: sequences under way together.
    """
    engine: Any = engine_for(policy, max_slots, _Cached, _Turnwise)
    engine.eos, engine.is_over = min(policy.eos_ids), is_over
    made: Engine = engine
    return made
