"""The engine of ``research ask``: it samples one sequence and passes on each token when drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from research_rl.agents.engines.cache_forward import CachedRows, CacheForward, CacheWays
from research_rl.agents.engines.sampling import sample, uniforms
from research_rl.agents.engines.turns import TurnEnd, begin, check_finite, resume
from research_rl.agents.policy import LMPolicy, evaluating
from research_rl.agents.types import Engine, OnStop, SamplingParams, Sequence

log = logging.getLogger(__name__)
Held: TypeAlias = CachedRows | list[int]
"""What was read of a sequence: the model's own cache, or the ids where none is to be trusted."""
OnText: TypeAlias = Callable[[Literal["model", "environment"], str], None]
"""Hears a piece of text as soon as it is whole, and who wrote it."""


class StreamingEngine(Engine):
    """One sequence at a time, with the model's own cache; samples what the other engines sample.

    Args:
        policy: whose weights sample.
        on_text: hears what is written: the model's text in pieces of a token or a few, the
            environment's replies whole.
    """

    def __init__(self, policy: LMPolicy, on_text: OnText) -> None:
        self._policy, self._on_text = policy, on_text
        self._ways: CacheWays | None = None
        self._forward: CacheForward | None = None

    @torch.no_grad()
    def run(
        self,
        prompts: Seq[Seq[int]],
        params: SamplingParams,
        on_stop: OnStop,
        seeds: Seq[int] | None = None,
    ) -> list[Sequence]:
        """See Engine.run; prompts are played one after the other."""
        sequences, seed = begin(prompts, params, seeds)
        end = TurnEnd(self._policy, params.stops)
        with evaluating(self._policy.model):
            self._forward = self._forward_of(self._policy.model)
            for row, sequence in enumerate(sequences):
                self._play(row, sequence, params, on_stop, end, seed[row : row + 1])
        return sequences

    def _play(
        self,
        row: int,
        sequence: Sequence,
        params: SamplingParams,
        on_stop: OnStop,
        end: TurnEnd,
        seed: Tensor,
    ) -> None:
        """Sample one sequence to its end."""
        unread, held, told = list(sequence.prompt_ids), None, 0
        while sequence.finish == "running":
            logits, held = self._read(unread, held)
            position = torch.tensor([len(sequence.response_ids)])
            uniform = uniforms(seed, position).to(logits.device)
            tokens, logprobs = sample(logits, params, uniform)
            check_finite(logprobs)
            sequence.append_sampled(int(tokens), float(logprobs))
            unread = [int(tokens)]
            sequence.finish = end.of(sequence.turn_ids)
            over = len(sequence.response_ids) >= params.max_response_tokens
            told = self._tell(sequence, told, last=over or sequence.finish != "running")
            if sequence.finish != "running":
                given = on_stop([(row, sequence)])[0]
                if resume(sequence, given, params):
                    assert given is not None
                    self._on_text("environment", self._policy.decode(given))
                    unread, told = [*unread, *given], 0
            elif over:
                sequence.finish = "length"

    def _forward_of(self, model: Any) -> CacheForward | None:
        """How the model is called; None where its cache is not to be trusted."""
        forward = CacheForward(model, self._ways)
        try:
            self._ways = self._ways or forward.check()
        except NotImplementedError as error:
            log.warning("everything is read again for each token: %s", error)
            return None
        return forward

    def _read(self, ids: list[int], held: Held | None) -> tuple[Tensor, Held]:
        """Read ids behind what is held; logits (1, V) of the next token, and what is held then."""
        forward = self._forward
        if forward is None:
            before = held if isinstance(held, list) else []
            every = [*before, *ids]
            batch = torch.tensor([every], device=self._policy.device)
            return self._policy.model(input_ids=batch, use_cache=False).logits[:, -1], every
        rows = held if isinstance(held, CachedRows) else None
        if rows is None or forward.ways.reads_on:
            return forward.read(ids, rows)
        for token in ids:  # a cache that takes one token at a time
            logits, rows = forward.read([token], rows)
        return logits, rows

    def _tell(self, sequence: Sequence, told: int, last: bool) -> int:
        """Tell what the turn holds beyond ``told`` characters; return how many are told now.

        A character of several tokens is told when it is whole.
        """
        text = self._policy.decode(sequence.turn_ids)
        if text.endswith("\ufffd") and not last:
            return told
        if len(text) > told:
            self._on_text("model", text[told:])
        return max(told, len(text))
