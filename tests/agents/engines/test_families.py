"""Families of models whose greedy tokens are those of the stock generate, and those refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from doubles import tiny
from doubles.families import MIXING

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.types import SamplingParams, Sequence

WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2-window": {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 16},
    "qwen3": {},
    "llama": {},
    "mistral": {},
    "mistral-window": {"sliding_window": 16},
    "gemma2": {**WINDOWS, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": WINDOWS,
    "mixtral": {"num_local_experts": 2},
    "olmo2": {},
}
BUDGET = 48


def never(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
    """Nothing is appended: a sequence is over where its turn ends."""
    return [None for _ in stopped]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_generate(family: str) -> None:
    policy = tiny.policy(family.split("-")[0], seed=2, **FAMILIES[family])
    model: Any = policy.model.eval()
    prompts = [policy.encode("who wrote the book about rivers?"), policy.encode("q?")]
    params = SamplingParams(max_response_tokens=BUDGET, temperature=0.0, stop=())
    for prompt, ours in zip(prompts, CachedEngine(policy).run(prompts, params, never), strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=BUDGET,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        theirs = out.sequences[0, len(prompt) :]
        assert ours.response_ids == theirs.tolist()
        logprobs = torch.cat(out.logits).float().log_softmax(-1).gather(1, theirs[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(ours.logprobs), logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("mpt", "got AttributeError from MptForCausalLM"),
        ("bloom", "got BloomForCausalLM, which attends by code of its own"),
        ("stablelm", "got a forward pass of its own"),
        ("mamba", "got MambaForCausalLM, which attends by code of its own"),
        ("recurrent_gemma", "got RecurrentGemmaForCausalLM, in which sequences change each other"),
        ("lfm2", "got Lfm2ForCausalLM, in which sequences change each other"),
    ],
)
def test_what_cannot_be_handled_is_refused_by_name(family: str, why: str) -> None:
    policy = tiny.policy(family, **MIXING[family])
    with pytest.raises(NotImplementedError, match=rf"{why}.*use TurnwiseEngine for this model"):
        CachedEngine(policy).run([[1, 2, 3]], SamplingParams(), never)


def test_a_window_that_the_attention_is_not_told_of_is_refused() -> None:
    policy = tiny.policy("llama")
    policy.model.config.sliding_window = 64
    with pytest.raises(NotImplementedError, match="must be told of sliding windows"):
        CachedEngine(policy).run([[1, 2, 3]], SamplingParams(), never)
