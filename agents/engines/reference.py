"""Sampling without a cache: every prefix is computed anew by the stock forward pass.

Slow and plainly right; the cached engine is tested against it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from research_rl.agents.engines.sampling import sample, suppress_ends, uniforms
from research_rl.agents.engines.turns import TurnEnd, begin, check_finite, resume
from research_rl.agents.policy import LMPolicy, evaluating
from research_rl.agents.types import Engine, OnStop, SamplingParams, Sequence


class ReferenceEngine(Engine):
    """Recomputes every prefix at every token.

    Args:
        policy: whose weights sample.
        batch_size: sequences in one forward pass.
    """

    def __init__(self, policy: LMPolicy, batch_size: int = 64) -> None:
        self._policy = policy
        self._batch_size = batch_size
        self._end = TurnEnd(policy, SamplingParams().stops)

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
        self._end = self._end.at(params.stops)
        with evaluating(self._policy.model):
            while running := [i for i, s in enumerate(sequences) if s.finish == "running"]:
                self._sample_one([sequences[i] for i in running], seed[running], params)
                self._end_turns([(i, sequences[i]) for i in running], self._end, params, on_stop)
        return sequences

    def _sample_one(self, sequences: list[Sequence], seeds: Tensor, params: SamplingParams) -> None:
        """Add one token to each sequence."""
        logits = torch.cat(
            [
                self._next_logits(sequences[a : a + self._batch_size])
                for a in range(0, len(sequences), self._batch_size)
            ]
        )
        positions = torch.tensor([len(s.response_ids) for s in sequences])
        ends, sampled = self._end.table.to(logits.device), positions.to(logits.device)
        logits = suppress_ends(logits, ends, sampled, params)
        uniform = uniforms(seeds, positions).to(logits.device)
        tokens, logprobs = sample(logits, params, uniform)
        check_finite(logprobs)
        for s, token, logprob in zip(sequences, tokens.tolist(), logprobs.tolist(), strict=True):
            s.append_sampled(token, logprob)

    def _next_logits(self, sequences: list[Sequence]) -> Tensor:
        """Logits (B, V) of the token behind each sequence."""
        rows = [torch.tensor(s.prompt_ids + s.response_ids) for s in sequences]
        last = torch.tensor([len(row) - 1 for row in rows])
        ids = pad_sequence(rows, batch_first=True, padding_value=self._policy.pad_id)
        mask = torch.arange(ids.shape[1]) <= last[:, None]
        device = self._policy.device
        out = self._policy.model(
            input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False
        )
        logits: Tensor = out.logits[torch.arange(len(rows)), last]
        return logits

    @staticmethod
    def _end_turns(
        rows: list[tuple[int, Sequence]], end: TurnEnd, params: SamplingParams, on_stop: OnStop
    ) -> None:
        """Mark the sequences whose turn or budget has ended, and ask what to append."""
        for _, s in rows:
            s.finish = end.of(s.turn_ids)
        stopped = [(i, s) for i, s in rows if s.finish != "running"]
        if stopped:
            for (_, s), given in zip(stopped, on_stop(stopped), strict=True):
                resume(s, given, params)
        for _, s in rows:
            if s.finish == "running" and len(s.response_ids) >= params.max_response_tokens:
                s.finish = "length"
