"""The copy that is sampled from is the policy as it is now, in another dtype."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from doubles import tiny
from doubles.sampled import assert_same, make_policy, prompts_of, searcher

from research_rl.agents.engines.cached import CachedEngine
from research_rl.agents.engines.sampling_copy import (
    SamplingCopies,
    is_copy_needed,
    sampling_copy,
)
from research_rl.agents.engines.turnwise import TurnwiseEngine
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.proofs import CopyError
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


MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def test_adapters_around_each_other_are_all_merged(tmp_path: Any) -> None:
    policy = lora_policy(tmp_path, family="qwen3_moe", **MIXTURE)
    change(policy)
    model: Any = policy.model.eval()
    nested = [name for name, _ in model.named_modules() if name.endswith("experts.base_layer")]
    assert nested, "peft no longer puts two adapters around fused experts"
    merged = sampling_copy(model.get_base_model(), torch.float32)
    ids = torch.tensor([[1, 5, 9, 7]])
    with torch.no_grad():
        ours, theirs = merged(input_ids=ids).logits, model(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def outermost_only(layer: Any, dtype: torch.dtype) -> Any:
    """A merge that forgets an adapter inside another one."""
    twin = copy.deepcopy(layer)
    twin.merge()
    return twin.get_base_layer().to(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", [CachedEngine, TurnwiseEngine])
def test_a_copy_that_lacks_adapters_does_not_sample(
    engine: Any, dtype: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = lora_policy(tmp_path, family="qwen3_moe", **MIXTURE)  # adapters that add nothing yet
    monkeypatch.setattr("research_rl.agents.engines.sampling_copy._merged", outermost_only)
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    with pytest.raises(CopyError, match=r"got 2 of 12 where they are not: \S*layers.0.mlp.experts"):
        engine(policy, dtype=dtype).run([[1, 2]], PARAMS, searcher(policy), [0])
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())


def test_a_copy_that_is_another_model_does_not_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny.policy(tie_word_embeddings=True)

    def untied(model: Any, dtype: torch.dtype) -> Any:
        twin = copy.deepcopy(model).to(dtype)
        twin.lm_head.weight = torch.nn.Parameter(twin.lm_head.weight.flip(0))
        return twin

    monkeypatch.setattr("research_rl.agents.engines.sampling_copy.sampling_copy", untied)
    with pytest.raises(CopyError, match=r"nats on average .* leave the engine's dtype empty"):
        CachedEngine(policy, dtype="bfloat16").run([[1, 2]], PARAMS, searcher(policy), [0])


def test_copies_are_compared_once_and_again_when_adapters_change(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, compared = lora_policy(tmp_path), list[str]()
    module = "research_rl.agents.engines.sampling_copy"
    for name in ("prove_copy", "prove_merge"):
        monkeypatch.setattr(f"{module}.{name}", lambda *args, name=name: compared.append(name))
    copies, model = SamplingCopies(), policy.model.get_base_model()
    copies.made(model, torch.bfloat16)
    change(policy)
    copies.made(model, torch.bfloat16)
    assert compared == ["prove_merge", "prove_copy"]
    with policy.model.disable_adapter():
        copies.made(model, torch.bfloat16)
    assert compared == ["prove_merge", "prove_copy", "prove_copy"]
    copies.made(model, torch.bfloat16)
    assert compared[3:] == ["prove_merge", "prove_copy"]


def test_a_head_that_is_tied_may_have_an_adapter(tmp_path: Any) -> None:
    pytest.importorskip("peft")
    folder = str(tiny.checkpoint(tmp_path, tie_word_embeddings=True))
    lora = LoraConfig(r=4, target_modules=["lm_head", "q_proj"])
    policy = LMPolicy.from_config(PolicyConfig(folder, lora=lora))
    change(policy)
    prompts = prompts_of(policy, 2, 1)
    plain = CachedEngine(policy).run(prompts, PARAMS, searcher(policy), range(3))
    copied = CachedEngine(policy, dtype="float32").run(prompts, PARAMS, searcher(policy), range(3))
    assert_same(copied, plain, atol=1e-4)
