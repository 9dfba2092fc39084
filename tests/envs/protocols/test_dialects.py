"""Each dialect's facts: its bytes, what is read back, whose name it bears."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from doubles.dialect_turns import CALLS, NAMES, PAIR, opened, searching
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.envs.protocols import (
    PROTOCOLS,
    Answer,
    Found,
    Protocol,
    Search,
    Segment,
    TagProtocol,
    get_prompt,
    get_protocol,
)
from research_rl.envs.protocols.dialects.hermes import Hermes
from research_rl.envs.protocols.dialects.search_r1 import SearchR1
from research_rl.envs.types import Passage

PLAIN = st.text(alphabet="abc é世.,'-", min_size=1).map(str.strip).filter(bool)

REPLIES = {
    "research": " <result>\nA\nfirst\n\nB\nsecond\n</result>",
    "search_r1": "\n\n<information>Doc 1(Title: A) first\nDoc 2(Title: B) second</information>\n\n",
    "zero_search": "\n\n<information>Doc 1: A first\nDoc 2: B second</information>\n\n",
    "autorefine": "\n\n<documents>Doc 1(Title: A) first\nDoc 2(Title: B) second</documents>\n\n",
    "r1_searcher": (
        "\n\n<|begin_of_documents|>\n(1)A\nfirst\n(2)B\nsecond\n<|end_of_documents|>\n\n"
    ),
    "o2": "Search learnings: <learnings>A\nfirst B\nsecond</learnings>.\n",
    "hermes": "<tool_response>\nA\nfirst\n\nB\nsecond\n</tool_response>",
    "recall": (
        '<tool_response>{"name": "wikipedia_search", "arguments": {"query": "q"}}\n'
        "result: \nA\nfirst\n\nB\nsecond\n</tool_response>\n"
    ),
    "qwen3_coder": "<tool_response>\nA\nfirst\n\nB\nsecond\n</tool_response>",
    "llama3": "<tool_response>\nA\nfirst\n\nB\nsecond\n</tool_response>",
}
"""What is read behind a query that found two passages."""
STOPS = {
    "research": ("</search>",),
    "r1_searcher": ("<|end_of_query|>", "</answer>"),
    **dict.fromkeys(("search_r1", "zero_search", "autorefine", "o2"), ("</search>", "</answer>")),
    **dict.fromkeys(CALLS, ()),
}
WRITTEN = {
    "research": "<search> q </search>",
    "r1_searcher": " t <|begin_of_query|> q <|end_of_query|>",
    "o2": "<search>\n<query>q</query>\n</search>",
    "hermes": '<tool_call>\n{"name": "search", "arguments": {"query": "q"}}\n</tool_call>',
    "recall": (
        '<tool_call>\n{"name": "wikipedia_search", "arguments": {"query": "q"}}\n</tool_call>'
    ),
    "qwen3_coder": (
        "<tool_call>\n<function=search>\n<parameter=query>\nq\n</parameter>\n</function>\n"
        "</tool_call>"
    ),
    "llama3": '{"name": "search", "parameters": {"query": "q"}}',
}


@pytest.mark.parametrize("name", NAMES)
def test_a_reply_has_the_bytes_of_its_dialect(name: str) -> None:
    protocol = PROTOCOLS[name]
    text = protocol.reply([Found("q", PAIR)])
    assert text == REPLIES[name]
    assert protocol.stops == STOPS[name]
    assert WRITTEN.get(name, WRITTEN["research"]) in searching(name, "q")


def test_top_k_is_that_of_the_published_agents() -> None:
    three = {"search_r1", "autorefine", "o2"}
    assert {n: p.top_k for n, p in PROTOCOLS.items()} == {n: 3 if n in three else 5 for n in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_notes_stand_behind_passages_and_in_their_place(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert protocol.content(protocol.reply([Found("q", (), "nothing")], "the end")).split() == [
        *("nothing", "the", "end")
    ]
    both = protocol.content(protocol.reply([Found("q", PAIR[:1])], "the end"))
    assert both.endswith("first\n\nthe end" if name != "o2" else "first\nthe end")


@pytest.mark.parametrize("name", NAMES)
@given(query=PLAIN, answer=PLAIN, thought=st.one_of(st.just(""), PLAIN))
@settings(max_examples=20)
def test_what_is_written_is_read_back(name: str, query: str, answer: str, thought: str) -> None:
    protocol = PROTOCOLS[name]
    for before in ("", "<think>", "<think>\n", "<think>\n\n</think>\n\n"):
        turn = before + protocol.search(query, thought=thought, opened=before)
        folded = " ".join(query.split()) if name == "r1_searcher" else query
        assert protocol.parse(turn) == Search((folded,)), turn
        if name == "r1_searcher" and not before:
            continue  # its thought is open, though the turn does not hold its opening
        turn = before + protocol.answer(answer, thought=thought, opened=before)
        assert protocol.parse(turn) == Answer(answer), turn


@pytest.mark.parametrize("name", [n for n in NAMES if PROTOCOLS[n].max_queries != 1])
@given(queries=st.lists(PLAIN, min_size=2, max_size=5))
@settings(max_examples=20)
def test_several_queries_are_read_back_in_order(name: str, queries: list[str]) -> None:
    turn = searching(name, *queries)
    found = PROTOCOLS[name].parse(opened(PROTOCOLS[name]) + turn)
    assert found == Search(tuple(queries))


@pytest.mark.parametrize("name", NAMES)
def test_too_many_queries_are_not_written(name: str) -> None:
    protocol = PROTOCOLS[name]
    most = protocol.max_queries
    assert most is not None
    for count in (0, most + 1):
        with pytest.raises(ValueError, match=f"a search of {name} must hold 1 .*, got {count}"):
            protocol.search(*["q"] * count)


@pytest.mark.parametrize("wrong", [SearchR1, {"class_path": "SearchR1"}, None, 3, ["hermes"]])
def test_what_is_no_protocol_is_told_what_to_give(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"protocol must be one of research, .*or a Protocol, got"):
        get_protocol(wrong)


def test_a_class_of_a_protocol_is_told_to_be_made() -> None:
    with pytest.raises(TypeError, match=r"got the class SearchR1; make one: SearchR1\(\)"):
        get_protocol(SearchR1)  # type: ignore[arg-type]


class Renamed(Hermes):
    """Results between tags of its own."""

    result_tags = ("<found>", "</found>")


def test_tags_of_results_are_those_of_the_class() -> None:
    protocol = Renamed()
    reply = protocol.reply([Found("q", PAIR), Found("r", (), "</found>")])
    assert reply.startswith("<found>\n")
    assert len(protocol.results(reply)) == 2
    assert "&lt;/found>" in reply
    assert protocol.forges_reply("a <found> b")
    assert protocol.format_error([Segment("policy", "<found> x")]) == "the policy wrote <found>"


def test_queries_of_r1_searcher_lose_quotes_and_extra_space() -> None:
    turn = '<think> <|begin_of_query|> "boss"  of\tBakset <|end_of_query|>'
    assert PROTOCOLS["r1_searcher"].parse(turn) == Search(("boss of Bakset",))


def test_a_search_of_o2_may_hold_no_query_tag() -> None:
    assert PROTOCOLS["o2"].parse("<search> q </search>") == Search(("q",))
    assert PROTOCOLS["o2"].parse("<search><query> q</search>") == Search(("q",))
    assert PROTOCOLS["o2"].parse("<search></search>") == Search(("",))
    two = "<search><query>a</query>, <query>b</query></search>"
    assert PROTOCOLS["o2"].parse(two) == Search(("a", "b"))


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_tells_the_rules_and_where_they_hold(name: str) -> None:
    protocol = PROTOCOLS[name]
    prompt = get_prompt({"about": "the manuals of Acme"}, protocol)
    told = prompt.text("Which fuse?")
    assert "the manuals of Acme" in told + str(prompt.tools)
    assert told.endswith("Which fuse?" + protocol.begins)
    words = "a few words" if name in CALLS else "a query"
    assert PROTOCOLS[name].search(words).strip()[-24:] in told + prompt.tools_text


class Bracketed(TagProtocol):
    """Tags in brackets."""

    tags = {**TagProtocol.tags, "search": ("[search]", "[/search]")}  # noqa: RUF012
    stops = ("[/search]",)


def test_a_protocol_of_one_s_own_is_named_by_its_place() -> None:
    own = Bracketed()
    assert own.name == f"{__name__}.Bracketed"
    assert get_protocol(own) is own
    for twin in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own)):
        assert twin == own
        assert hash(twin) == hash(own)
    assert own != get_protocol("research")
    assert own.parse("[search] q [/search]") == Search(("q",))
    assert "[search]" not in own.reply([Found("q", [Passage("1", "a [search] b")])])


class Begun(TagProtocol):
    """Each response begins in a thought, whose tags are in brackets."""

    tags = {**TagProtocol.tags, "think": ("[think]", "[/think]")}  # noqa: RUF012
    begins = "[think]"


def test_a_beginning_may_be_a_thought_in_other_tags() -> None:
    own = Begun()
    turn = own.begins + own.answer("x", thought="t", opened=own.begins)
    assert turn == "[think] t [/think] <answer> The answer is \\boxed{x} </answer>"
    assert own.format_error([Segment("policy", turn)]) is None


def test_several_queries_of_tags_are_told_apart() -> None:
    found = [Found("a </result>", PAIR[:1]), Found("b", (), "none")]
    reply = PROTOCOLS["research"].reply(found, "the end")
    assert reply == (" <result>\na &lt;/result>\nA\nfirst\n\nb\nnone\n\nthe end\n</result>")


def test_no_protocol_is_like_another() -> None:
    everything: list[Protocol] = list(PROTOCOLS.values())
    assert len(set(everything)) == len(everything)
    with pytest.raises(ValueError, match="did you mean 'hermes'"):
        get_protocol("hermess")
