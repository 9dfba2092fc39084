"""The cached engine computes what the plain one does, and reads nothing twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from doubles import tiny
from doubles.planned_turns import ThreeTurns, answering, planned_prompts
from doubles.sampled import (
    FAMILIES,
    assert_same,
    assert_weights_are_followed,
    make_policy,
    prompts_of,
    searcher,
)

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.engines.reference import ReferenceEngine
from research_rl.agents.engines.slot_forward import SlotForward
from research_rl.agents.kernels.kv_cache import SlotCache
from research_rl.agents.kernels.slot_attention import Span, flat_batch, slots_enabled
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import SamplingParams, Sequence


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_both_engines_agree_searches_included(family: str, temperature: float) -> None:
    policy = make_policy(family)
    prompts = prompts_of(policy, 3, 1, 2)
    stop = ("</search>", "a", "e", "1", "F")
    params = SamplingParams(max_response_tokens=60, temperature=temperature, stop=stop)
    theirs = ReferenceEngine(policy).run(prompts, params, searcher(policy), range(6))
    engine = CachedEngine(policy, max_slots=4)
    assert_same(engine.run(prompts, params, searcher(policy), range(6)), theirs)
    if temperature:
        assert engine.stats.result_tokens > 0


def test_greedy_engines_agree_behind_searches() -> None:
    policy = tiny.policy(seed=3)
    params = SamplingParams(max_response_tokens=70, temperature=0.0, stop=("a", "e", "\n", "1"))
    prompts = prompts_of(policy, 2, 2, 1)
    searches = 0

    def on_stop(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
        nonlocal searches
        searches += len(stopped)
        return [policy.encode(f" r{len(s.response_ids)}!") for _, s in stopped]

    theirs = ReferenceEngine(policy).run(prompts, params, on_stop)
    assert searches > 5
    assert_same(CachedEngine(policy, max_slots=3).run(prompts, params, on_stop), theirs)


@pytest.mark.parametrize("slots", [1, 3, 64])
@pytest.mark.parametrize("max_prefill_tokens", [1, 40])
def test_company_does_not_change_samples(slots: int, max_prefill_tokens: int) -> None:
    policy = make_policy("qwen2")
    prompts = prompts_of(policy, 3, 1, 4)
    params = SamplingParams(max_response_tokens=24)
    alone = CachedEngine(policy).run(prompts, params, searcher(policy), range(8))
    engine = CachedEngine(policy, slots, max_prefill_tokens)
    assert_same(engine.run(prompts, params, searcher(policy), range(8)), alone)
    # mixed with others, in another order
    mixed = [x for pair in zip(prompts, [[5, 6], [7]] * 4, strict=True) for x in pair][::-1]
    seeds = [x for pair in zip(range(8), range(50, 58), strict=True) for x in pair][::-1]
    again = CachedEngine(policy, slots).run(mixed, params, searcher(policy), seeds)
    assert_same(again[::-1][::2], alone)


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 64])
def test_every_prompt_is_read_once(slots: int) -> None:
    policy = make_policy("qwen2")
    prompts = prompts_of(policy, 5, 1, 6)
    order = [0, 6, 1, 11, 5, 2, 7, 8, 3, 9, 10, 4]  # groups need not stand together
    engine = CachedEngine(policy, max_slots=slots)
    sequences = engine.run(
        [prompts[i] for i in order], SamplingParams(max_response_tokens=40), searcher(policy)
    )
    stats = engine.stats
    assert stats.prompts == 3
    assert stats.prompt_tokens == sum(len(p) - 1 for p in {tuple(p) for p in prompts})
    assert stats.sampled_tokens == sum(sum(s.loss_mask) for s in sequences)
    given = sum(len(s.loss_mask) - sum(s.loss_mask) for s in sequences)
    assert stats.result_tokens == given
    assert stats.prefilled_tokens == stats.prompt_tokens + given


class PlannedTurns(ThreeTurns, CachedEngine):
    """Three turns of 64 tokens, and 128 of each result."""

    written, given = 64, 128


@pytest.mark.parametrize("overlap", [False, True])
def test_the_tokens_read_are_each_prompt_once_and_what_was_appended(overlap: bool) -> None:
    policy = make_policy("qwen2")
    engine = PlannedTurns(policy, overlap_searches=overlap)
    params = SamplingParams(max_response_tokens=600)
    sequences = engine.run(planned_prompts(128, 4, 5), params, answering(128), range(20))
    assert all(sum(s.loss_mask) == 3 * 64 and s.finish == "eos" for s in sequences)
    assert engine.stats.sampled_tokens == 20 * 3 * 64
    assert engine.stats.prefilled_tokens == 4 * (128 - 1) + 20 * 2 * 128 == 5628


def test_the_cache_does_not_outlive_a_change_of_weights() -> None:
    policy = make_policy("qwen2")
    assert_weights_are_followed(CachedEngine(policy), policy)


def test_long_segments_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("qwen2")
    monkeypatch.setattr("research_rl.agents.kernels.slot_attention._MAX_QUERIES", 7)
    monkeypatch.setattr("research_rl.agents.kernels.slot_attention._MAX_SCORES", 200)
    prompts = prompts_of(policy, 2, 2, 2, 1, 1)
    params = SamplingParams(max_response_tokens=60)
    theirs = ReferenceEngine(policy).run(prompts, params, searcher(policy, 30), range(8))
    ours = CachedEngine(policy, 5).run(prompts, params, searcher(policy, 30), range(8))
    assert_same(ours, theirs)


def test_an_adapter_is_sampled_from(tmp_path: Any) -> None:
    pytest.importorskip("peft")
    config = PolicyConfig(str(tiny.checkpoint(tmp_path)), lora=LoraConfig(r=4))
    policy = LMPolicy.from_config(config)
    with torch.no_grad():
        for p in policy.trainable_parameters():
            p.add_(0.03 * torch.randn_like(p))
    prompts, params = prompts_of(policy, 2, 1), SamplingParams(max_response_tokens=30)
    theirs = ReferenceEngine(policy).run(prompts, params, searcher(policy), range(3))
    ours = CachedEngine(policy).run(prompts, params, searcher(policy), range(3))
    assert_same(ours, theirs)


def test_low_precision_is_close_to_the_stock_forward() -> None:
    policy = make_policy("qwen2").to(torch.bfloat16)
    params = SamplingParams(max_response_tokens=60)
    prompts = prompts_of(policy, 4, 4)
    gaps = []
    for s in CachedEngine(policy).run(prompts, params, searcher(policy), range(8)):
        ids = torch.tensor([s.prompt_ids + s.response_ids])
        out = policy(ids, torch.ones_like(ids)).logprobs[0, len(s.prompt_ids) - 1 :]
        gaps.append((out - torch.tensor(s.logprobs))[torch.tensor(s.loss_mask)].abs())
    assert torch.cat(gaps).mean() < 0.05


def test_it_samples_under_autocast_as_the_policy_scores() -> None:
    policy = make_policy("qwen2")
    params = SamplingParams(max_response_tokens=60)
    engine, gaps = CachedEngine(policy), []
    with torch.autocast("cpu", torch.bfloat16):
        for s in engine.run(prompts_of(policy, 4, 4), params, searcher(policy), range(8)):
            ids = torch.tensor([s.prompt_ids + s.response_ids])
            out = policy(ids, torch.ones_like(ids)).logprobs[0, len(s.prompt_ids) - 1 :]
            gaps.append((out - torch.tensor(s.logprobs))[torch.tensor(s.loss_mask)].abs())
    assert engine.stats.result_tokens > 0
    assert torch.cat(gaps).mean() < 0.05


def test_a_model_with_a_state_of_its_own_is_refused() -> None:
    policy = tiny.policy("mamba", state_size=4)
    with pytest.raises(NotImplementedError, match="use TurnwiseEngine"):
        CachedEngine(policy).run([[1, 2, 3]], SamplingParams(), searcher(policy))


def test_positions_that_depend_on_the_batch_are_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    policy = tiny.policy("llama", rope_parameters=rope)
    with pytest.raises(NotImplementedError, match="rope_type 'dynamic'"):
        CachedEngine(policy).run([[1, 2, 3]], SamplingParams(), searcher(policy))


def test_attention_in_chunks_is_refused() -> None:
    layers = ["chunked_attention", "full_attention"]
    policy = tiny.policy("llama4_text", num_local_experts=2, layer_types=layers)
    with pytest.raises(NotImplementedError, match=r"in chunks.*use TurnwiseEngine"):
        CachedEngine(policy).run([[1, 2, 3]], SamplingParams(), searcher(policy))


def test_an_unknown_attention_argument_is_refused() -> None:
    policy = tiny.policy()
    forward = SlotForward(policy.model)
    cache = SlotCache(1, 8)
    cache.reserve(8)
    one = torch.ones(1, dtype=torch.int64)
    batch = flat_batch(cache, one, 0 * one, 1, [])
    with slots_enabled(policy.model):
        assert forward(batch, 1).shape == (1, 288)
        with pytest.raises(NotImplementedError, match="got s_aux"):
            policy.model(input_ids=one[None], use_cache=False, flat=batch, s_aux=one)
        with pytest.raises(NotImplementedError, match="a forward pass of its own"):
            policy.model(input_ids=one[None], use_cache=False)


def test_a_slot_holds_what_it_was_given_through_growth_and_moves() -> None:
    cache = SlotCache(3, 600)
    cache.reserve(10)
    key = torch.randn(10, 2, 4)
    keys, _ = cache.layer(0, key, key)
    keys[1, :, :10] = key.transpose(0, 1)
    cache.reserve(400)
    cache.copy([1], [2], 10)
    keys, values = cache.layer(0, key, key)
    assert (keys.shape, values.shape) == ((3, 2, 448, 4), (3, 2, 448, 4))
    torch.testing.assert_close(keys[1, :, :10], key.transpose(0, 1))
    torch.testing.assert_close(keys[2, :, :10], key.transpose(0, 1))
    with pytest.raises(ValueError, match="at most 600 tokens, got 601"):
        cache.reserve(601)


def test_segments_that_share_a_prompt_are_written_to_all_slots() -> None:
    cache = SlotCache(4, 8)
    empty = torch.zeros(0, dtype=torch.int64)
    batch = flat_batch(cache, empty, empty, 0, [Span([7, 8], 0, [0, 2]), Span([9], 3, [1])])
    assert batch.ids.tolist() == [7, 8, 9]
    assert batch.positions.tolist() == [0, 1, 3]
    writes = zip(
        batch.write_tokens.tolist(),
        batch.write_slots.tolist(),
        batch.write_positions.tolist(),
        strict=True,
    )
    assert list(writes) == [(0, 0, 0), (1, 0, 1), (0, 2, 0), (1, 2, 1), (2, 1, 3)]


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        CachedEngine(tiny.policy(), max_slots=0)
