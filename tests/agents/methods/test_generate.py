from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doubles import tiny

from research_rl.agents import LocalGenerator, SamplingParams
from research_rl.agents.methods.generators import ModelInput

GREEDY = SamplingParams(6, temperature=0.0, stop=())


def test_texts_and_chats_are_encoded_as_the_policy_does() -> None:
    policy = tiny.policy()
    chat: ModelInput = [{"role": "user", "content": "Who <eos>?"}]
    begun: ModelInput = [*chat, {"role": "assistant", "content": "So <eos>"}]
    text, first, more = LocalGenerator(policy).generate(["Who?", chat, begun], GREEDY)
    assert text.prompt_tokens == len(policy.encode("Who?"))
    assert first.prompt_tokens == len(policy.encode_chat(chat))  # type: ignore[arg-type]
    assert more.prompt_tokens == (first.prompt_tokens or 0) + len(policy.encode("So <eos>"))
    assert text.token_ids is not None
    assert text.text == policy.decode(text.token_ids)
    assert text.tokens == len(text.token_ids) <= 6


def test_a_stop_string_ends_a_text_and_the_budget_another() -> None:
    policy = tiny.policy(bias={"</search>": 8.0, "a": 6.0})
    one = LocalGenerator(policy).generate(["Q"], SamplingParams(40, temperature=1.0), [1])[0]
    assert one.finish == "stop"
    assert one.text.endswith("</search>")
    assert (
        LocalGenerator(tiny.policy(bias={"a": 9.0})).generate(["Q"], GREEDY)[0].finish == "length"
    )
    assert LocalGenerator(tiny.policy(bias={"<eos>": 40.0})).generate(["Q"], GREEDY)[0].text == ""


def test_equal_seeds_give_equal_texts_whatever_else_is_asked() -> None:
    generator = LocalGenerator(tiny.policy())
    params = SamplingParams(8, stop=())
    both = generator.generate(["Q", "R"], params, [5, 6])
    assert generator.generate(["R"], params, [6])[0] == both[1]
    assert generator.generate([], params) == []


def test_every_input_may_have_its_own_budget() -> None:
    generator = LocalGenerator(tiny.policy(bias={"a": 9.0}))
    each = [SamplingParams(n, temperature=0.0, stop=()) for n in (3, 5, 3)]
    assert [g.tokens for g in generator.generate(["Q", "R", "S"], each)] == [3, 5, 3]


def test_an_input_that_does_not_fit_is_its_own_error() -> None:
    generator = LocalGenerator(tiny.policy(max_position_embeddings=32))
    long, short = generator.generate(["Q" * 40, "Q"], GREEDY)
    assert (long.finish, long.text) == ("error", "")
    assert "32 positions together, got 40 + 6" in (long.error or "")
    assert short.error is None


def test_a_model_is_loaded_by_name(tmp_path: Path) -> None:
    generator = LocalGenerator(str(tiny.checkpoint(tmp_path / "model")), device="cpu")
    assert generator.generate(["Q"], GREEDY)[0].error is None
    assert not any(p.requires_grad for p in generator.policy.parameters())
    assert generator.count("<search>ab") == 3
    with pytest.raises(FileNotFoundError, match="model must be a Hugging Face id"):
        LocalGenerator(str(tmp_path / "nowhere"))


def test_a_chat_must_meet_a_chat_template() -> None:
    policy = tiny.policy()
    policy.tokenizer.chat_template = None
    chat: Any = [{"role": "user", "content": "Q"}]
    with pytest.raises(ValueError, match="a tokenizer with a chat template"):
        LocalGenerator(policy).generate([chat], GREEDY)
