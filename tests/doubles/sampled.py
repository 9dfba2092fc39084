"""Policies that search now and then, prompts for them, and a comparison of what engines sampled."""

from __future__ import annotations

from typing import Any

import torch
from doubles import tiny

from research_rl.agents.engines.reference import ReferenceEngine
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import Engine, SamplingParams, Sequence

BIAS = {"</search>": 5.5, "<search>": 4.0, "<eos>": 2.5}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {},
    "llama": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "mistral": {},
    "mistral-window": {"sliding_window": 16},
    "gemma2": {"sliding_window": 16, "attn_logit_softcapping": 2.0},
    "phi3": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}


def make_policy(family: str) -> LMPolicy:
    return tiny.policy(family.split("-")[0], bias=BIAS, **FAMILIES[family])


def searcher(policy: LMPolicy, size: int = 10) -> Any:
    def on_stop(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
        assert [i for i, _ in stopped] == sorted(i for i, _ in stopped)
        return [
            None
            if s.finish == "eos"
            else policy.encode(f" <result>\n{policy.decode(s.turn_ids)[:size]}\n</result>")
            for _, s in stopped
        ]

    return on_stop


def prompts_of(policy: LMPolicy, *counts: int) -> list[list[int]]:
    texts = [f"question {'x' * (5 * i)}?" for i in range(len(counts))]
    return [policy.encode(t) for t, n in zip(texts, counts, strict=True) for _ in range(n)]


def assert_same(ours: list[Sequence], theirs: list[Sequence], atol: float = 1e-5) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.response_ids == b.response_ids
        assert (a.loss_mask, a.finish, a.turn_start) == (b.loss_mask, b.finish, b.turn_start)
        torch.testing.assert_close(
            torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=atol, rtol=0
        )


def assert_weights_are_followed(engine: Engine, policy: LMPolicy) -> None:
    """What is sampled after a change of the weights is what the plain engine samples then."""
    prompts, params = prompts_of(policy, 2, 2), SamplingParams(40, temperature=0.0)
    before = engine.run(prompts, params, searcher(policy))
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1 * torch.randn_like(p))
    after = engine.run(prompts, params, searcher(policy))
    assert [s.response_ids for s in after] != [s.response_ids for s in before]
    assert_same(after, ReferenceEngine(policy).run(prompts, params, searcher(policy)))


PARAMS = SamplingParams(max_response_tokens=60, stop=("</search>", "a", "e", "1", "F"))
