"""Demonstrations become the ids that the policy would have sampled; ids are never made twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from doubles import tiny
from doubles.sample_rollouts import rollout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research_rl.agents import LMPolicy
from research_rl.agents.policy import PolicyConfig
from research_rl.agents.types import Rollout, TextOnly
from research_rl.envs import Passage, get_prompt
from research_rl.envs.protocols import PROTOCOLS, RESEARCH, Found, TagProtocol
from research_rl.trainers.demonstrations.encode import (
    as_sampled,
    demonstrations_that_fit,
    in_protocol,
)
from research_rl.trainers.demonstrations.module import SFTModule
from research_rl.trainers.settings import Updates

POLICY = tiny.policy()
PROMPT = get_prompt("Question: {prompt}\n")
TEXT = replace(rollout(), sequence=TextOnly())


def test_the_policy_s_tokens_carry_the_loss_and_nothing_else() -> None:
    found = as_sampled(TEXT, POLICY, PROMPT).sequence
    assert found.prompt_ids == POLICY.encode_prompt(PROMPT, TEXT.question.text)
    own = [i for i, mask in zip(found.response_ids, found.loss_mask, strict=True) if mask]
    given = [i for i, mask in zip(found.response_ids, found.loss_mask, strict=True) if not mask]
    assert given == POLICY.encode(TEXT.results[0])
    assert own[-1] in POLICY.eos_ids
    assert own[:-1] == [*POLICY.encode(TEXT.turns[0]), *POLICY.encode(TEXT.turns[1])]
    assert found.logprobs == [0.0] * len(found.response_ids)


def test_ids_of_the_same_tokenizer_are_kept() -> None:
    once = as_sampled(TEXT, POLICY, PROMPT)
    sequence = once.sequence
    sequence.logprobs = [-0.25 if mask else 0.0 for mask in sequence.loss_mask]
    again = as_sampled(once, POLICY, PROMPT)
    assert again.sequence is sequence


def test_ids_under_another_prompt_are_made_anew() -> None:
    once = as_sampled(TEXT, POLICY, PROMPT)
    other = get_prompt("Q: {prompt}\n")
    again = as_sampled(once, POLICY, other)
    assert again.sequence.prompt_ids == POLICY.encode_prompt(other, TEXT.question.text)
    assert again.sequence.response_ids == once.sequence.response_ids


def test_a_turn_that_was_cut_off_does_not_end() -> None:
    found = as_sampled(replace(TEXT, finish_reason="length"), POLICY, PROMPT).sequence
    assert found.response_ids[-1] not in POLICY.eos_ids


def test_one_that_is_too_long_is_named() -> None:
    long = replace(TEXT, results=["x" * 4 * (POLICY.max_length or 0)])
    with pytest.raises(ValueError, match=r"positions, got \d+ tokens of question 'Who is the boss"):
        as_sampled(long, POLICY, PROMPT)


def test_what_is_too_long_is_left_out_before_the_first_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    how = (POLICY, PROMPT, RESEARCH)
    assert demonstrations_that_fit([TEXT], *how) == [TEXT]
    assert not caplog.records
    long = [replace(TEXT, results=["x" * n * (POLICY.max_length or 0)]) for n in (4, 5, 6)]
    assert demonstrations_that_fit([long[0], TEXT, *long[1:]], *how) == [TEXT]
    (said,) = caplog.messages
    assert "3 of 4 demonstrations are left out" in said
    assert TEXT.question.id in said
    with pytest.raises(ValueError, match=r"positions, got 2 longer ones: .*model\.env\.top_k"):
        demonstrations_that_fit(long[:2], *how)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=30), st.text(max_size=30))
def test_masks_are_right_for_any_text(turn: str, result: str) -> None:
    one = replace(TEXT, turns=[turn, "x"], results=[result])
    found = as_sampled(one, POLICY, PROMPT).sequence
    sizes = len(found.response_ids), len(found.loss_mask), len(found.logprobs)
    assert len(set(sizes)) == 1
    assert found.loss_mask.count(False) == len(POLICY.encode(result))


@pytest.mark.parametrize("opens", ["<think>\n", "<think>\n\n</think>\n\n", ""])
def test_what_the_chat_template_opens_is_no_part_of_a_demonstration(opens: str) -> None:
    tokenizer = tiny.tokenizer(tags=False)
    tokenizer.chat_template += f"{{% if add_generation_prompt %}}{opens}{{% endif %}}"
    policy = LMPolicy(tiny.model(tok=tokenizer), tokenizer)
    for name in ("hermes", "recall", "o2", "search_r1"):
        protocol = PROTOCOLS[name]
        turns = [protocol.search("q", thought="a"), protocol.answer("x", thought="b")]
        turns = [turn if "<think>" in turn else f"<think>{turn}" for turn in turns]
        reply = protocol.reply([Found("q", [Passage("1", "T\nbody", 1.0)])])
        row = {"question_id": "1", "question": "Q", "answers": ["x"], "reward": 1.0}
        row |= {"turns": turns, "results": [reply], "finish_reason": "answer", "protocol": name}
        told = as_sampled(Rollout.from_row(row), policy, protocol.prompt())
        ids = [*told.sequence.prompt_ids, *told.sequence.response_ids]
        text = policy.tokenizer.decode(ids).partition("assistant\n")[2]
        assert text.count("<think>") == 2 + opens.count("</think>") * (1 + protocol.keeps_eos)
        opened = policy.opened(protocol.prompt(), protocol)
        assert told.opened == opened
        assert all("<think>" in turn for turn in told.whole_turns)


def test_a_demonstration_in_another_protocol_is_refused() -> None:
    row = {"question_id": "1", "question": "Q", "answers": ["x"], "reward": 1.0, "turns": ["t"]}
    one = Rollout.from_row({**row, "results": [], "protocol": "o2"})
    assert in_protocol(one, PROTOCOLS["o2"]) is one
    with pytest.raises(ValueError, match=r"run's protocol hermes, got o2 .*protocol o2"):
        in_protocol(one, PROTOCOLS["hermes"])

    class Own(TagProtocol):
        pass

    own = Rollout.from_row({**row, "results": [], "protocol": Own().name})
    assert in_protocol(own, Own()).protocol == Own()
    assert own.to_row()["protocol"] == Own().name, "the name is kept where the class is not"
    with pytest.raises(ValueError, match="got research for question"):
        in_protocol(Rollout.from_row({**row, "results": []}), Own())


def test_options_of_sampling_mean_nothing_to_imitation(tmp_path: Path) -> None:
    sampled = Updates(8, downsample_to=4, async_rollouts=1, max_staleness=1, resample_rounds=2)
    module = SFTModule(PolicyConfig(str(tmp_path)), updates=replace(sampled, mask_truncated=True))
    assert module.updates == Updates(1, mask_truncated=True)
