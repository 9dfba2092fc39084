"""Demonstrations become the ids that the policy would have sampled; ids are never made twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from doubles import tiny
from doubles.sample_rollouts import rollout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research_rl.agents.types import TextOnly
from research_rl.envs import get_prompt
from research_rl.trainers.demonstrations.encode import as_sampled

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


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=30), st.text(max_size=30))
def test_masks_are_right_for_any_text(turn: str, result: str) -> None:
    one = replace(TEXT, turns=[turn, "x"], results=[result])
    found = as_sampled(one, POLICY, PROMPT).sequence
    sizes = len(found.response_ids), len(found.loss_mask), len(found.logprobs)
    assert len(set(sizes)) == 1
    assert found.loss_mask.count(False) == len(POLICY.encode(result))
