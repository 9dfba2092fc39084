"""The turnwise engine samples what the plain one does, with the cache of each model's own kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from doubles import tiny
from doubles.families import CACHES
from doubles.planned_turns import ThreeTurns, answering, planned_prompts
from doubles.sampled import (
    BIAS,
    PARAMS,
    assert_same,
    assert_weights_are_followed,
    make_policy,
    prompts_of,
    searcher,
)

from research_rl.agents.engines.cache_forward import CacheForward, chosen, joined_rows
from research_rl.agents.engines.reference import ReferenceEngine
from research_rl.agents.engines.turnwise import TurnwiseEngine
from research_rl.agents.policy.loading import LoraConfig, PolicyConfig
from research_rl.agents.policy.policy import LMPolicy
from research_rl.agents.types import SamplingParams, Sequence

ONE_BY_ONE = ("mamba",)
"""Families whose caches take one token at a time."""
ALONE = ("rwkv",)
"""Families that are wrong for several rows at once."""


def policy_of(family: str) -> LMPolicy:
    return tiny.policy(family, bias=BIAS, **CACHES[family])


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the engine has told in the log."""
    return [r.getMessage() for r in caplog.records if r.name.endswith(".turnwise")]


@pytest.mark.parametrize("family", CACHES)
def test_it_samples_what_the_plain_engine_samples(family: str) -> None:
    policy = policy_of(family)
    prompts = prompts_of(policy, 3, 1, 2)
    theirs = ReferenceEngine(policy).run(prompts, PARAMS, searcher(policy), range(6))
    engine = TurnwiseEngine(policy, max_slots=4)
    assert_same(engine.run(prompts, PARAMS, searcher(policy), range(6)), theirs)
    assert engine.stats.result_tokens > 0
    assert engine.stats.prompt_tokens == sum(len(p) for p in {tuple(p) for p in prompts})
    ways = engine._ways
    assert ways is not None
    assert ways.reads_on == (family not in ONE_BY_ONE)
    assert ways.joins == ("none" if family in ALONE else "any")


@pytest.mark.parametrize("family", [f for f in CACHES if f != "rwkv"])  # its generate is no judge
def test_greedy_tokens_are_those_of_generate_over_several_turns(family: str) -> None:
    policy = policy_of(family)
    model: Any = policy.model.eval()
    given = policy.encode(" and then?")

    def on_stop(stopped: list[tuple[int, Sequence]]) -> list[list[int] | None]:
        return [given if s.turn_start < 30 else None for _, s in stopped]

    def generated(sequence: Sequence) -> list[int]:
        """The last turn, written by generate behind all before it."""
        before = sequence.prompt_ids + sequence.response_ids[: sequence.turn_start]
        ids = torch.tensor([before])
        turn = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(sequence.turn_ids),
            min_new_tokens=len(sequence.turn_ids),
            do_sample=False,
        )
        return list(turn[0, len(before) :])

    params = SamplingParams(70, temperature=0.0, stop=("a", "e", "\n", "1", "x"))
    prompts = prompts_of(policy, 1, 1)
    model.generation_config.eos_token_id = None
    for sequence in TurnwiseEngine(policy).run(prompts, params, on_stop):
        assert sequence.turn_ids == generated(sequence)


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_company_does_not_change_samples(slots: int) -> None:
    policy = policy_of("qwen3_next")
    prompts = prompts_of(policy, 3, 1, 4)
    alone = TurnwiseEngine(policy).run(prompts, PARAMS, searcher(policy), range(8))
    engine = TurnwiseEngine(policy, slots)
    assert_same(engine.run(prompts, PARAMS, searcher(policy), range(8)), alone)
    mixed = [x for pair in zip(prompts, [[5, 6], [7]] * 4, strict=True) for x in pair][::-1]
    seeds = [x for pair in zip(range(8), range(50, 58), strict=True) for x in pair][::-1]
    again = TurnwiseEngine(policy, slots).run(mixed, PARAMS, searcher(policy), seeds)
    assert_same(again[::-1][::2], alone)


class PlannedTurns(ThreeTurns, TurnwiseEngine):
    """Three turns of 16 tokens, and 24 of each result."""

    written, given = 16, 24


@pytest.mark.parametrize("family", ["lfm2", "mamba", "rwkv"])
def test_each_prompt_and_each_result_is_read_once(family: str) -> None:
    policy = policy_of(family)
    prompts, on_stop, read = planned_prompts(32, 2, 3), answering(24), 0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal read
        read += kwargs["input_ids"].numel()

    engine = PlannedTurns(policy)
    engine.run(prompts[:1], SamplingParams(2), on_stop)  # which also finds out how
    policy.model.register_forward_pre_hook(count, with_kwargs=True)
    sequences = engine.run(prompts, SamplingParams(600), on_stop, range(6))
    assert all(sum(s.loss_mask) == 3 * 16 and s.finish == "eos" for s in sequences)
    stats = engine.stats
    assert (stats.prompts, stats.prompt_tokens) == (2, 2 * 32)
    assert (stats.sampled_tokens, stats.result_tokens) == (6 * 3 * 16, 6 * 2 * 24)
    assert read == 2 * 32 + 6 * (3 * 16 - 1 + 2 * 24)  # the last token of all is not read


def test_the_cache_does_not_outlive_a_change_of_weights() -> None:
    policy = policy_of("lfm2")
    assert_weights_are_followed(TurnwiseEngine(policy), policy)


def test_an_adapter_and_a_copy_are_sampled_from(tmp_path: Any) -> None:
    pytest.importorskip("peft")
    folder = tiny.checkpoint(tmp_path, "lfm2", **CACHES["lfm2"])
    policy = LMPolicy.from_config(PolicyConfig(str(folder), lora=LoraConfig(r=4)))
    with torch.no_grad():
        for p in policy.trainable_parameters():
            p.add_(0.03 * torch.randn_like(p))
    prompts = prompts_of(policy, 2, 1)
    theirs = ReferenceEngine(policy).run(prompts, PARAMS, searcher(policy), range(3))
    assert_same(TurnwiseEngine(policy).run(prompts, PARAMS, searcher(policy), range(3)), theirs)
    engine = TurnwiseEngine(policy, dtype="bfloat16")
    gaps = []
    for s in engine.run(prompts, PARAMS, searcher(policy), range(3)):
        ids = torch.tensor([s.prompt_ids + s.response_ids])
        out = policy(ids, torch.ones_like(ids)).logprobs[0, len(s.prompt_ids) - 1 :]
        gaps.append((out - torch.tensor(s.logprobs))[torch.tensor(s.loss_mask)].abs())
    assert 0 < float(torch.cat(gaps).mean()) < 0.1
    assert next(policy.parameters()).dtype == torch.float32


def test_it_works_also_without_a_usable_cache(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # its recurrent states lie in its modules: two sequences would share them
    settings = {"lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3}
    policy = tiny.policy("recurrent_gemma", bias=BIAS, **settings)
    prompts = prompts_of(policy, 1, 1)
    theirs = ReferenceEngine(policy).run(prompts, PARAMS, searcher(policy), range(2))
    engine = TurnwiseEngine(policy)
    for _ in range(2):
        assert_same(engine.run(prompts, PARAMS, searcher(policy), range(2)), theirs)
    (told,) = said(caplog)
    assert "everything is read again for each token: RecurrentGemmaForCausalLM" in told


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("mamba", "takes one token at a time"),
        ("rwkv", "each sequence decodes alone"),
        ("lfm2", ""),
    ],
)
def test_what_costs_time_is_told_once(
    family: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = TurnwiseEngine(policy_of(family))
    for _ in range(2):
        engine.run([[5, 6]], SamplingParams(2), lambda rows: [None for _ in rows])
    assert [told in line for line in said(caplog)] == [True] * bool(told)


@pytest.mark.parametrize(
    ("floor", "told"), [(0.003, "something else with its cache"), (0.5, "everything is read again")]
)
def test_a_decode_step_that_differs_from_the_forward_pass_is_told(
    floor: float, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = TurnwiseEngine(
        tiny.policy("nemotron_h", **{**CACHES["nemotron_h"], "time_step_min": floor})
    )
    engine.run([[5, 6]], SamplingParams(2), lambda rows: [None for _ in rows])
    assert told in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_a_fault_is_found_however_small_the_weights_are(size: float, dtype: torch.dtype) -> None:
    """Attention halves what it gives behind a cache, which may be too little for logits to tell."""
    policy = make_policy("qwen2")
    model = policy.model.eval().to(dtype)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(size)

    def halves(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
        held = kwargs["past_key_values"]
        behind = held is not None and held.get_seq_length(module.layer_idx) > 8
        return (out[0] * (0.5 if behind else 1.0), *out[1:])

    CacheForward(model).check()
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(halves, with_kwargs=True)
    with pytest.raises(NotImplementedError, match="must compute with its cache"):
        CacheForward(model).check()


@pytest.mark.parametrize("family", ["gemma2", "qwen3_next", "mamba2"])
def test_rows_are_joined_and_taken_out_as_they_were(family: str) -> None:
    policy = policy_of(family)
    policy.model.eval()
    forward = CacheForward(policy.model)
    texts = [[7 * i % 200 + 3 for i in range(n)] for n in (5, 30, 17, 40)]
    with torch.no_grad():
        parts = [forward.read(text)[1] for text in texts]
        rows = joined_rows([joined_rows(parts[:2]), joined_rows(parts[2:])])
        assert rows.lengths == [5, 30, 17, 40]
        tokens = torch.tensor([9, 10, 11, 12])
        logits, rows = forward.step(tokens, rows)
        for i, (text, token) in enumerate(zip(texts, tokens.tolist(), strict=True)):
            whole = [*text, token, 13, 14, 15]
            stock = policy.model(input_ids=torch.tensor([whole]), use_cache=False).logits[0]
            torch.testing.assert_close(logits[i], stock[len(text)], atol=1e-4, rtol=1e-4)
            taken = chosen(rows, [i])
            assert taken.lengths == [len(text) + 1]
            behind, _ = forward.read([13, 14, 15], taken)
            torch.testing.assert_close(behind[0], stock[-1], atol=1e-4, rtol=1e-4)


def test_caches_of_different_kinds_are_not_joined() -> None:
    policy = make_policy("qwen2")
    parts = [CacheForward(policy.model.eval()).read([1, 2, 3])[1] for _ in range(2)]
    parts[1].cache.layers[0].is_initialized = False
    with pytest.raises(ValueError, match="must agree in is_initialized to be joined"):
        joined_rows(parts)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="max_slots must be at least 1, got 0"):
        TurnwiseEngine(tiny.policy(), max_slots=0)
    with pytest.raises(ValueError, match="dtype must be"):
        TurnwiseEngine(tiny.policy(), dtype="int8")  # type: ignore[arg-type]
