"""The prompts are ReSearch's, byte for byte, and say where the question goes."""

from __future__ import annotations

import hashlib

import pytest

from research_rl.envs import BASE, INSTRUCT, Prompt, get_prompt


def test_both_prompts_are_byte_identical_to_the_published_ones() -> None:
    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    assert INSTRUCT.system is not None
    assert digest(BASE.user) == "b895b6c451eebf83dcad17f77f1fd39ab6ccfa5987c841c46deb2065af31adda"
    assert (
        digest(INSTRUCT.system)
        == "87e802b6736cb3165ea6a644d4fe2f2c7118b21828103c9eeb338ce0c7f8b23b"
    )


def test_a_base_prompt_is_text_alone() -> None:
    assert BASE.text("Who?").endswith("User: Who?. Assistant:")
    assert BASE.messages("Who?") is None


def test_a_chat_prompt_is_messages_and_their_text() -> None:
    messages = INSTRUCT.messages("Who?")
    assert messages is not None
    assert [m["role"] for m in messages] == ["system", "user"]
    assert messages[1]["content"] == "Who?"
    assert INSTRUCT.text("Who?") == f"{INSTRUCT.system}\n\nWho?"


def test_a_question_may_hold_braces() -> None:
    assert get_prompt("Q: {prompt} A:").text("{prompt} {x} \\frac{1}{2}") == (
        "Q: {prompt} {x} \\frac{1}{2} A:"
    )


def test_names_texts_and_prompts_are_prompts() -> None:
    own = Prompt("Be brief.", "{prompt}")
    assert get_prompt("base") is BASE
    assert get_prompt("instruct") is INSTRUCT
    assert get_prompt(own) is own


@pytest.mark.parametrize("text", ["", "chat", "Q: {question}"])
def test_a_prompt_without_a_place_for_the_question_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"prompt must contain \{prompt\}"):
        get_prompt(text)
