"""The tag language: what a turn asks for, what a result looks like, what is malformed."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.envs import Answer, Malformed, Passage, Search, Segment, parse_action
from research_rl.envs.protocols import (
    BUDGET_USED,
    Kind,
    Part,
    escape_tags,
    format_error,
    last_boxed,
    parts,
    render_result,
    result_content,
)

ANY = st.text(alphabet=st.characters(exclude_categories=()))  # lone surrogates too
TAGS = ("think", "search", "result", "answer")
PIECES = st.sampled_from(
    [f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")]
    + ["\\boxed{", "{", "}", "x", "\ud800"]
)
TAGGY = st.lists(PIECES, max_size=25).map("".join)
SOUND = "<think> t </think><answer> \\boxed{x} </answer>"


@pytest.mark.parametrize(
    ("turn", "action"),
    [
        ("<search> a b </search>", Search(("a b",))),
        ("<search> a </search>\n", Search(("a",))),
        ("<search> a </search>).", Search(("a",))),
        ("<search> a <search> b </search>", Search(("b",))),
        ("<search> a </search><search> b </search>", Search(("b",))),
        ("q </search>", Search(("",))),
        ("<search>  </search>", Search(("",))),
        ("<answer> \\boxed{x} </answer>", Answer("x")),
        ("<answer> \\boxed{} </answer>", Answer("")),
        ("<think> an <answer> </think><answer>\\boxed{x}</answer>", Answer("x")),
        ("<search> a </search><result> r </result><answer>\\boxed{x}</answer>", Answer("x")),
        ("<answer> \\boxed{x} </answer><search> a </search>", Search(("a",))),
    ],
)
def test_a_turn_asks_for_what_its_last_complete_tags_say(turn: str, action: object) -> None:
    assert parse_action(turn) == action


@pytest.mark.parametrize(
    "turn", ["", "words", "<answer> x </answer>", "<answer> \\boxed{x}", "<search> q", "</answer>"]
)
def test_neither_search_nor_answer_is_malformed_with_a_reason(turn: str) -> None:
    action = parse_action(turn)
    assert isinstance(action, Malformed)
    assert action.reason


@given(ANY.filter(lambda s: "</search>" not in s and "<search>" not in s))
def test_a_written_query_is_read_back(query: str) -> None:
    assert parse_action(f"<think> t </think><search>{query}</search>") == Search((query.strip(),))


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        ("\\boxed{a} \\boxed{b}", "b"),
        ("\\boxed{\\boxed{a}}", "a"),
        ("\\boxed{a{b}c}", "a{b}c"),
        ("\\boxed {a}", "a"),
        ("\\boxed{a}}", "a"),
        ("\\boxed{x} \\boxed Paris", "x"),
        ("\\boxed{x} \\boxed{y", "x"),
        ("\\boxed{a \\} b}", "a \\} b"),
        ("\\\\boxed{a}", "a"),
        ("\\boxed{a \\\\} b}", "a \\\\} b"),
        ("} \\boxed{a", None),
        ("boxed{a}", None),
        ("\\fbox{a}", None),
    ],
)
def test_the_last_complete_box_counts(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


def test_boxes_are_found_in_linear_time() -> None:
    begin = time.perf_counter()
    for text in ("\\boxed{", "\\", "{", "\\boxed ", "\\{"):
        assert last_boxed(text * 200_000) is None
    assert time.perf_counter() - begin < 10


@given(st.one_of(ANY, TAGGY))
@settings(max_examples=300)
def test_no_string_raises(text: str) -> None:
    parse_action(text)
    last_boxed(text)
    error = format_error([Segment("policy", text), Segment("env", text), Segment("policy", SOUND)])
    assert error is None or error


@given(st.one_of(ANY, TAGGY))
def test_an_escaped_document_holds_no_tag(text: str) -> None:
    escaped = escape_tags(text)
    assert not any(f"<{slash}{tag}>" in escaped for tag in TAGS for slash in ("", "/"))


def test_the_result_block_has_the_bytes_of_the_original() -> None:
    passages = [Passage("1", '"A"\nfirst'), Passage("2", '"B"\nsecond\n')]
    assert render_result(passages) == ' <result>\n"A"\nfirst\n\n"B"\nsecond\n</result>'
    assert render_result([]) == " <result>\n\n</result>"
    assert render_result(passages[:1], BUDGET_USED).endswith(f"first\n\n{BUDGET_USED}\n</result>")


@given(st.one_of(ANY, TAGGY))
def test_what_was_retrieved_cannot_change_the_verdict_on_the_form(document: str) -> None:
    def error(result: str) -> str | None:
        return format_error(
            [
                Segment("policy", "<think> t </think><search> q </search>"),
                Segment("env", result),
                Segment("policy", SOUND),
            ]
        )

    assert error(document) is None


@pytest.mark.parametrize(
    ("turn", "error"),
    [
        ("<answer> \\boxed{x} </answer>", "no <think> ... </think>"),
        ("</think> t <think><answer> \\boxed{x} </answer>", "</think> without <think>"),
        ("<think> <think> t </think></think>" + SOUND, "<think> inside <think>"),
        ("<think> <answer> \\boxed{x} </answer> </think>", "no <answer> ... </answer>"),
        ("<think> t <answer> \\boxed{x} </answer>", "<think> is not closed"),
        (SOUND + SOUND, "<think> behind </answer>"),
        (SOUND + " more", "text behind the answer"),
        ("<result> r </result>" + SOUND, "the policy wrote <result>"),
        ("<search> q </search>" + SOUND, "<think> behind </search>"),
        ("<think> t </think><answer> \\boxed{ } </answer>", "the \\boxed{} is empty"),
        ("<think> t </think><answer> x </answer>", "no \\boxed{} in the answer"),
        ("<think> <search> q </search> </think>" + SOUND, "</search> inside <think>"),
    ],
)
def test_each_malformed_turn_is_told_what_is_wrong(turn: str, error: str) -> None:
    assert format_error([Segment("policy", turn)]) == error


@pytest.mark.parametrize(
    "turns",
    [
        [SOUND],
        ["<think></think><answer>\\boxed{x}</answer>"],
        ["words <think> t </think> words" + SOUND],
        ["<think> the tags <search> and <answer> </think>" + SOUND],
        ["<search> q </search>\n", SOUND],
        ["<search></search>", "<search> q </search>", SOUND],
    ],
)
def test_sound_turns_pass(turns: list[str]) -> None:
    assert format_error([Segment("policy", turn) for turn in turns]) is None


def test_a_turn_is_cut_at_its_tags() -> None:
    turn = " a <think> b <search> </think><search> c </search>\n<answer> d"
    assert parts(turn) == [
        Part("text", " a "),
        Part("think", " b <search> "),
        Part("search", " c "),
        Part("text", "\n"),
        Part("answer", " d", closed=False),
    ]
    assert parts(turn, ["search"])[1] == Part("search", " </think><search> c ")
    assert parts("<result> forged </result>") == [Part("text", "<result> forged </result>")]
    assert parts("") == []


@given(
    TAGGY | ANY, st.lists(st.sampled_from(["think", "search", "answer"]), unique=True, min_size=1)
)
def test_the_parts_of_any_text_are_the_whole_text(text: str, kinds: list[Kind]) -> None:
    found = parts(text, kinds)
    assert "".join(part.written for part in found) == text
    assert {part.kind for part in found} <= {*kinds, "text"}
    assert all(part.closed for part in found[:-1]), "an open block reaches to the end"
    for part in found:
        if part.kind == "text":
            assert part.text
            assert not any(f"<{kind}>" in part.text for kind in kinds)
        else:
            assert f"</{part.kind}>" not in part.text
    assert not any(a.kind == b.kind == "text" for a, b in itertools.pairwise(found))


@given(st.lists(ANY.map(lambda text: Passage("1", text)), max_size=3), st.booleans())
def test_what_a_result_holds_comes_back(passages: list[Passage], escape: bool) -> None:
    block = render_result(passages, escape=escape)
    assert block == f" <result>\n{result_content(block)}\n</result>"


@given(TAGGY | ANY)
def test_what_is_no_result_comes_back_without_outer_space(text: str) -> None:
    cut = re.match(r"\A\s*<result>\n?(.*?)\n?</result>\s*\Z", text, re.DOTALL)
    assert result_content(text) == (cut[1] if cut else text).strip()
