"""The copy that is sampled from is the policy as it is now, in another dtype."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from doubles import tiny
from doubles.sampled import assert_same, make_policy, prompts_of, searcher

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.engines.sampling_copy import is_copy_needed, sampling_copy
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import SamplingParams

PARAMS = SamplingParams(max_response_tokens=60)


def change(policy: LMPolicy) -> None:
    with torch.no_grad():
        for p in policy.trainable_parameters():
            p.add_(0.1 * torch.randn_like(p))


def lora_policy(tmp_path: Any, **kwargs: Any) -> LMPolicy:
    pytest.importorskip("peft")
    folder = str(tiny.checkpoint(tmp_path, **kwargs))
    return LMPolicy.from_config(PolicyConfig(folder, lora=LoraConfig(r=4)))


@pytest.mark.parametrize("kind", ["full", "tied", "frozen", "lora"])
def test_the_copy_is_never_stale(kind: str, tmp_path: Any) -> None:
    if kind == "lora":
        policy = lora_policy(tmp_path)
    else:
        policy = tiny.policy(tie_word_embeddings=kind == "tied")
    if kind == "frozen":
        policy.model.get_input_embeddings().requires_grad_(False)
    engine, prompts = CachedEngine(policy, dtype="bfloat16"), prompts_of(policy, 2, 2)
    before = engine.run(prompts, PARAMS, searcher(policy), range(4))
    weights = {k: v.clone() for k, v in policy.state_dict().items()}
    change(policy)
    after = engine.run(prompts, PARAMS, searcher(policy), range(4))
    fresh = CachedEngine(policy, dtype="bfloat16").run(prompts, PARAMS, searcher(policy), range(4))
    assert after == fresh
    assert [s.response_ids for s in after] != [s.response_ids for s in before]
    policy.load_state_dict(weights)
    assert engine.run(prompts, PARAMS, searcher(policy), range(4)) == before


def test_adapters_are_merged_and_left_alone(tmp_path: Any) -> None:
    policy = lora_policy(tmp_path)
    change(policy)
    weights = {k: v.clone() for k, v in policy.state_dict().items()}
    model: Any = policy.model
    merged = sampling_copy(model.get_base_model(), torch.float32)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    ids = torch.tensor([[1, 5, 9, 7]])
    model.eval()
    with torch.no_grad():
        ours, theirs = merged(input_ids=ids).logits, model(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    for name, value in policy.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
    prompts = prompts_of(policy, 2, 1)
    plain = CachedEngine(policy).run(prompts, PARAMS, searcher(policy), range(3))
    copied = CachedEngine(policy, dtype="float32").run(prompts, PARAMS, searcher(policy), range(3))
    assert_same(copied, plain, atol=1e-4)  # a merged product rounds otherwise than two


def test_a_copy_shares_what_has_the_dtype_and_keeps_ties_and_buffers() -> None:
    policy = tiny.policy(tie_word_embeddings=True)
    twin: Any = sampling_copy(policy.model, torch.bfloat16)
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in twin.buffers()} == {torch.float32}
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    same: Any = sampling_copy(policy.model, torch.float32)
    assert same.lm_head.weight.data_ptr() == policy.model.lm_head.weight.data_ptr()
    assert is_copy_needed(policy.model, torch.bfloat16)
    assert not is_copy_needed(policy.model, torch.float32)


def gaps(policy: LMPolicy, engine: CachedEngine) -> torch.Tensor:
    """|sampled - recomputed| log-prob of every sampled token; the policy recomputes."""
    found = []
    for s in engine.run(prompts_of(policy, 6, 6), PARAMS, searcher(policy), range(12)):
        ids = torch.tensor([s.prompt_ids + s.response_ids])
        with torch.no_grad():
            out = policy(ids, torch.ones_like(ids)).logprobs[0, len(s.prompt_ids) - 1 :]
        found.append((out - torch.tensor(s.logprobs))[torch.tensor(s.loss_mask)].abs())
    return torch.cat(found)


def test_sampled_log_probs_are_close_to_a_stock_forward() -> None:
    policy = tiny.policy(initializer_range=0.05, bias={"</search>": 4.0})
    exact = gaps(policy, CachedEngine(policy))
    assert len(exact) > 200
    assert exact.max() <= 1e-5
    rounded = gaps(policy, CachedEngine(policy, dtype="bfloat16"))
    assert 0 < rounded.mean() <= 5e-3
    assert (rounded > math.log(1.05)).float().mean() < 0.03


def test_what_cannot_be_copied_is_refused() -> None:
    policy = make_policy("qwen2")
    head = policy.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"got torch.int8 for weight; leave .* empty"):
        sampling_copy(policy.model, torch.bfloat16)


@pytest.mark.parametrize("overlap", [False, True])
def test_what_the_environment_makes_during_a_run_can_be_learned_with(overlap: bool) -> None:
    policy = tiny.policy(bias={"</search>": 4.0})
    reply, made = searcher(policy), list[torch.Tensor]()

    def on_stop(stopped: Any) -> Any:
        made.append(torch.ones(2))
        return reply(stopped)

    engine = CachedEngine(policy, dtype="bfloat16", overlap_searches=overlap)
    engine.run(prompts_of(policy, 2, 2), PARAMS, on_stop, range(4))
    assert made
    assert not any(x.is_inference() for x in made)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_no_graph_is_kept_of_a_run(dtype: Any) -> None:
    policy, seen = tiny.policy(bias={"</search>": 4.0}), list[tuple[bool, bool]]()

    class Watched(CachedEngine):
        def shape_logits(self, logits: Any, *args: Any) -> Any:
            seen.append((torch.is_grad_enabled(), logits.requires_grad))
            return super().shape_logits(logits, *args)

    Watched(policy, dtype=dtype).run(prompts_of(policy, 2, 2), PARAMS, searcher(policy), range(4))
    assert set(seen) == {(False, False)}
