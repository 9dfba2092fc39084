"""What is wrong with the form of a turn is told in words: tags, thoughts and calls."""

from __future__ import annotations

import pytest
from doubles.dialect_turns import CALLS, NAMES, answering, opened, searching

from research_rl.envs.protocols import PROTOCOLS, Part, Segment


def good(name: str) -> list[str]:
    """Turns of good form, each with what is opened of it."""
    protocol = PROTOCOLS[name]
    return [
        opened(protocol) + searching(name, "q"),
        opened(protocol, 1) + answering(name, "x", turn=1),
    ]


def error_of(name: str, turns: list[str]) -> str | None:
    return PROTOCOLS[name].format_error([Segment("policy", turn) for turn in turns])


@pytest.mark.parametrize("name", NAMES)
def test_good_form_passes(name: str) -> None:
    search, answer = good(name)
    assert error_of(name, [search, answer]) is None
    assert error_of(name, []) == "the policy wrote nothing"
    assert error_of(name, [answer, answer]) is not None
    assert error_of(name, [search, search]) is not None
    behind = None if name in CALLS else "text behind the answer"
    assert error_of(name, [search, answer + " more"]) == behind


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*CALLS, "r1_searcher")])
def test_malformed_tags_are_told(name: str) -> None:
    search, answer = good(name)
    kept = answer.removeprefix("<think> t </think> ")
    result = PROTOCOLS[name].tags["result"][0]  # type: ignore[attr-defined]
    errors = {
        kept: "no <think> ... </think>",
        "</think> t <think>" + kept: "</think> without <think>",
        "<think> <think> t </think></think>" + kept: "<think> inside <think>",
        "<think> t " + kept: (
            "<think> is not closed" if name == "research" else "</answer> inside <think>"
        ),
        answer + answer: "<think> behind </answer>",
        answer + " more": "text behind the answer",
        result + answer: f"the policy wrote {result}",
        search + answer: "<think> behind </search>",
        "<think> t </think><answer> </answer>": (
            "no \\boxed{} in the answer" if name == "research" else "the answer is empty"
        ),
        "<think> t </think>": "no <answer> ... </answer>",
    }
    assert {turn: error_of(name, [turn]) for turn in errors} == errors


def test_refine_is_a_block_of_the_policy() -> None:
    search, answer = good("autorefine")
    assert error_of("autorefine", [search, "<refine> r </refine> " + answer]) is None
    assert error_of("autorefine", [search, "<refine> r " + answer]) == "<think> inside <refine>"
    assert error_of("search_r1", [search, "<refine> r " + answer]) is None, "a word like others"
    assert PROTOCOLS["autorefine"].parts("<refine> r </refine> x") == [
        Part("refine", " r "),
        Part("text", " x"),
    ]


def test_a_search_of_r1_searcher_stands_in_a_thought() -> None:
    query = "<|begin_of_query|> q <|end_of_query|>"
    errors = {
        (f"<think> t {query}", " so </think> <answer> x </answer>"): None,
        (f"<think> t {query}", f" t {query}", " so </think> <answer> x </answer>"): None,
        (f"<think> t {query}", " so <answer> x </answer>"): "</answer> inside <think>",
        (f"<think> t </think> {query}", "<answer> x </answer>"): (
            "<|begin_of_query|> outside <think>"
        ),
        (f"<think> t {query}", f"<think> {query}", "</think><answer> x </answer>"): (
            "<think> inside <think>"
        ),
        ("<think> t <|begin_of_documents|>",): "the policy wrote <|begin_of_documents|>",
        ("<think> so </think> <answer> x </answer>",): None,
        (
            f"<think> t {query} so </think> <answer> x </answer>",
        ): "</think> behind <|end_of_query|>",
    }
    assert {turns: error_of("r1_searcher", list(turns)) for turns in errors} == errors


def test_a_thought_of_r1_searcher_goes_on_through_turns() -> None:
    protocol = PROTOCOLS["r1_searcher"]
    turn = "<think> an <answer> <|begin_of_query|> q <|end_of_query|>"
    assert [part.kind for part in protocol.parts(turn)] == ["think", "search"]
    turn = " an <answer> </think> <answer> x </answer>"
    assert protocol.parts(turn) == [
        Part("think", " an <answer> ", tags=("", "</think>")),
        Part("text", " "),
        Part("answer", " x "),
    ]
    assert not protocol.broken(turn)
    assert protocol.broken(" q <|end_of_query|>")
    assert protocol.broken("</think> <answer> x")
    assert not protocol.broken("</think> <answer> x", cut=True)


@pytest.mark.parametrize("name", CALLS)
def test_malformed_calls_are_told(name: str) -> None:
    search, answer = good(name)
    other = search.replace("search", "fly") if name != "recall" else search.replace("wiki", "w")
    errors = {
        (search, other, answer): "a wrong tool call: there is no tool",
        (search,): "the last message calls a tool",
        (answer, answer): "a message before the last does not call a tool",
        ("<tool_response>\nx\n</tool_response>" + answer,): "the policy wrote <tool_response>",
        ("</think>" + "</think>" + answer,): "</think> without <think>",
        ("<think><think>" + answer,): "<think> inside <think>",
        (answer + "<think>",): "<think> is not closed",
    }
    for turns, error in errors.items():
        assert str(error_of(name, list(turns))).startswith(error), turns
    assert error_of(name, ["<think> t </think>"]) == (
        "no tool call and no \\boxed{} in the answer"
        if name == "recall"
        else "no tool call and no answer"
    )
    assert error_of(name, ["\\boxed{x}"]) == (
        "no <think> ... </think>" if name == "recall" else None
    )
    assert error_of(name, ["<think> t </think> x"]) == (
        "no tool call and no \\boxed{} in the answer" if name == "recall" else None
    )
