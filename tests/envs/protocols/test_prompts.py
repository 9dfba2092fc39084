"""The prompts are ReSearch's, byte for byte, and say where the question goes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import pytest

from research_rl.envs import BASE, INSTRUCT, Prompt, get_prompt
from research_rl.envs.protocols import PROTOCOLS, TagProtocol, prompt_about
from research_rl.envs.protocols.tags import Tags

TAGS = ("think", "search", "result", "answer")


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


@pytest.mark.parametrize("said", [{"user": "Q: {prompt}"}, {"system": None, "user": "Q: {prompt}"}])
def test_a_mapping_is_a_chat_also_without_a_system_message(said: dict[str, str | None]) -> None:
    prompt = get_prompt(said)
    assert prompt.messages("Who?") == [{"role": "user", "content": "Q: Who?"}]
    assert prompt.text("Who?") == "Q: Who?"
    assert get_prompt({"system": "Be brief."}) == Prompt("Be brief.", "{prompt}")
    assert prompt != Prompt(None, "Q: {prompt}")


def test_a_mapping_with_other_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'assistant' beside user; leave it out"):
        get_prompt({"assistant": "x", "user": "{prompt}"})
    with pytest.raises(ValueError, match="prompt must contain"):
        get_prompt({"system": "x", "user": "no place"})


@pytest.mark.parametrize("chat", [True, False])
def test_a_prompt_for_any_corpus_says_what_is_searched(chat: bool) -> None:
    prompt = get_prompt({"about": "the manuals of Acme", "chat": chat})
    text = prompt.text("Which fuse?")
    assert prompt == prompt_about("the manuals of Acme", chat)
    assert prompt.chat is chat
    assert "search tool over the manuals of Acme." in text
    assert "ikipedia" not in text
    assert "Which fuse?" in text
    assert all(text.count(f"<{tag}>") == text.count(f"</{tag}>") for tag in TAGS)
    assert r"\boxed{" in text
    with pytest.raises(ValueError, match="about must say what the documents are"):
        get_prompt({"about": " "})
    with pytest.raises(ValueError, match="got 'user' beside about"):
        get_prompt({"about": "x", "user": "{prompt}"})


def test_a_prompt_may_stand_in_a_file(tmp_path: Path) -> None:
    said = {"system": "Sei knapp.", "user": "Frage: {prompt}"}
    for name, text in {
        "a.json": json.dumps(said),
        "a.yaml": "system: Sei knapp.\nuser: 'Frage: {prompt}'\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert get_prompt(str(tmp_path / name)) == get_prompt(said)
    (tmp_path / "a.txt").write_text("Frage: {prompt}\nAntwort:\n", encoding="utf-8")
    assert get_prompt(str(tmp_path / "a.txt")) == Prompt(None, "Frage: {prompt}\nAntwort:")
    (tmp_path / "bad.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"\{system, user\} or \{about\}, got list"):
        get_prompt(str(tmp_path / "bad.yaml"))


def test_an_environment_takes_a_chat_and_pays_as_for_a_chat() -> None:
    env = gym.make("ReSearch-v0", prompt={"user": "Q: {prompt}"}, disable_env_checker=True)
    text, _ = env.reset(seed=0)
    assert text.startswith("Q: ")
    assert env.unwrapped.prompt.chat  # type: ignore[attr-defined]


def test_a_class_of_other_tags_stops_at_them() -> None:
    class Brackets(TagProtocol):
        tags: ClassVar[Tags] = {**TagProtocol.tags, "search": ("[find]", "[/find]")}

    class Longer(Brackets):
        stops = ("\n\n",)

    assert Brackets.stops == ("[/find]",)
    assert Longer.stops == ("\n\n",), "what a class says stays"
    assert PROTOCOLS["autorefine"].stops == ("</search>", "</answer>")
    with pytest.raises(ValueError, match="got none for answer, result, think; begin with"):
        type("Few", (TagProtocol,), {"tags": {"search": ("[", "]")}})


def test_a_reply_is_a_message_where_turns_are() -> None:
    class Chatty(TagProtocol):
        keeps_eos = True

    assert [piece.role for piece in Chatty().pieces("x")] == ["user"]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"system": "x", "tools": "false"}, "tools of a prompt must be true or false, got 'false'"),
        ({"about": "x", "chat": "no"}, "chat of a prompt must be true or false"),
        ({"user": 5}, "user of a prompt must be a text, got 5"),
        ({"system": "x", "begins": True}, "begins of a prompt must be a text, got True"),
    ],
)
def test_a_part_of_another_kind_is_refused(said: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        get_prompt(said)  # type: ignore[arg-type]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for name, text in {"a.json": "{", "a.yaml": "a: [1"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{name} must be (JSON|YAML), got"):
            get_prompt(str(tmp_path / name))
