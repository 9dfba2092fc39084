"""Calls of tools: what a bad one is told, how good and bad ones stand side by side."""

from __future__ import annotations

import json

import pytest
from doubles.dialect_turns import CALLS, PAIR

from research_rl.envs.protocols import (
    PROTOCOLS,
    Answer,
    Found,
    Malformed,
    Piece,
    Prompt,
    Search,
    get_prompt,
)


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "llama3"])
def test_each_call_has_a_message_of_the_tool(name: str) -> None:
    reply = PROTOCOLS[name].reply([Found("a", PAIR[:1]), Found("b", (), "none")], "the end")
    assert PROTOCOLS[name].pieces(reply) == (
        Piece("A\nfirst", role="tool"),
        Piece("none\n\nthe end", role="tool"),
    )


@pytest.mark.parametrize("name", ["o2", "recall"])
def test_all_results_are_one_message_of_the_user(name: str) -> None:
    protocol = PROTOCOLS[name]
    reply = protocol.reply([Found("a", PAIR[:1]), Found("b", (), "none")], "the end")
    assert protocol.pieces(reply) == (Piece(reply, role="user"),)
    assert protocol.content(reply).split() == ["A", "first", "none", "the", "end"]


DEEP = "[" * 100_000
BAD_JSON = {
    "{": "the call is no JSON",
    DEEP: "the call is no JSON: it is nested too deeply",
    "9" * 100_000: "the call is no JSON",
    "5": 'a call must be an object with "name", got 5',
    "null": 'a call must be an object with "name", got None',
    '{"arguments": {"query": "q"}}': 'a call must be an object with "name"',
    '{"name": "fly", "arguments": {"query": "q"}}': "there is no tool 'fly'; the only one is",
    '{"name": ["search"], "arguments": {}}': "there is no tool ['search']",
    '{"name": "search"}': 'search takes {"query": text} as "arguments", got None',
    '{"name": "search", "arguments": []}': "got []",
    '{"name": "search", "arguments": {"q": "x"}}': "got {'q': 'x'}",
    '{"name": "search", "arguments": {"query": 5}}': "got {'query': 5}",
    '{"name": "search", "arguments": "q"}': "got 'q'",
    '{"name": "search", "arguments": "[' + DEEP + '"}': "got '[[",
    '{"name": "search", "arguments": ' + "[" * 500 + "]" * 500 + "}": "got [[",
}


@pytest.mark.parametrize("text", BAD_JSON)
def test_a_bad_call_of_hermes_says_what_is_wrong(text: str) -> None:
    action = PROTOCOLS["hermes"].parse(f"<tool_call>\n{text}\n</tool_call>")
    assert isinstance(action, Search)
    assert action.queries == ("",)
    assert BAD_JSON[text] in action.errors[0]
    assert len(action.errors[0]) < 300


def test_arguments_may_be_a_text_of_json() -> None:
    told = {"name": "search", "arguments": json.dumps({"query": " q "})}
    turn = f"<tool_call>{json.dumps(told)}</tool_call>"
    assert PROTOCOLS["hermes"].parse(turn) == Search(("q",))


def test_good_and_bad_calls_stand_side_by_side() -> None:
    good_call = '<tool_call>{"name": "search", "arguments": {"query": "a"}}</tool_call>'
    action = PROTOCOLS["hermes"].parse(good_call + "<tool_call>x</tool_call>" + good_call[:-3])
    assert isinstance(action, Search)
    assert action.queries == ("a", "", "")
    assert action.errors[0] == ""
    assert action.errors[2] == "the tool call is not closed"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("q", "a call must be <function=search>"),
        ("<function=search>", "a call must be"),
        ("<function=fly></function>", "there is no tool 'fly'"),
        (
            "<function=search><parameter=q>x</parameter></function>",
            "search takes <parameter=query>text</parameter>, got <parameter=q>",
        ),
        ("<function=search><parameter=query>x</function>", "got none"),
    ],
)
def test_a_bad_call_of_qwen3_coder_says_what_is_wrong(text: str, error: str) -> None:
    action = PROTOCOLS["qwen3_coder"].parse(f"<tool_call>{text}</tool_call>")
    assert isinstance(action, Search)
    assert error in action.errors[0]


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ('<|python_tag|>{"name": "search", "parameters": {"query": "q"}}', Search(("q",))),
        ('{"answer": 5}', Answer('{"answer": 5}')),
        ("{5}", Answer("{5}")),
        ("", Malformed("no tool call and no answer")),
    ],
)
def test_a_message_of_llama3_is_a_call_or_an_answer(text: str, action: object) -> None:
    assert PROTOCOLS["llama3"].parse(text) == action


def test_two_calls_in_a_message_of_llama3_are_told() -> None:
    one = '{"name": "search", "parameters": {"query": "q"}}'
    action = PROTOCOLS["llama3"].parse(f"{one} {one}")
    assert isinstance(action, Search)
    assert "the call is no JSON: Extra data" in action.errors[0]


def test_errors_of_a_search_match_its_queries() -> None:
    with pytest.raises(ValueError, match="one text for each of 2 queries, got 1"):
        Search(("a", "b"), ("no",))


@pytest.mark.parametrize("name", [*CALLS, "o2"])
def test_replies_that_are_messages_need_a_chat(name: str) -> None:
    plain = Prompt(None, "Q: {prompt}")
    for prompt in (plain, {"about": "manuals", "chat": False}):
        with pytest.raises(ValueError, match=f"protocol '{name}' must have a chat prompt"):
            get_prompt(prompt, name)
    assert get_prompt("Q: {prompt}", name).chat
