"""Each dialect's facts: its bytes, what is read back, what no text can do to it."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any, ClassVar

import pytest
from doubles.dialect_turns import CALLS, PAIR, TAGS, answering, opened, searching
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.envs.protocols import (
    PROTOCOLS,
    Answer,
    Found,
    Malformed,
    Part,
    Piece,
    Prompt,
    Protocol,
    Search,
    Segment,
    TagProtocol,
    get_prompt,
    get_protocol,
)
from research_rl.envs.protocols.boxes import unreadable
from research_rl.envs.protocols.dialects.hermes import Hermes
from research_rl.envs.protocols.dialects.search_r1 import SearchR1
from research_rl.envs.protocols.tags import Tags
from research_rl.envs.types import Passage

NAMES = tuple(PROTOCOLS)
JSON = (
    '{"name": ',
    '"search"',
    '"arguments": ',
    '"parameters": ',
    '{"query": ',
    "}",
    '"',
    "[",
    ",",
)
ANY = st.text(alphabet=st.characters(exclude_categories=()))  # lone surrogates too
PIECE = st.sampled_from([*TAGS, *JSON, "\\boxed{", "{", "x", " ", "\n", "\ud800"])
HOSTILE = st.one_of(ANY, st.lists(PIECE, max_size=25).map("".join))
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
@given(query=HOSTILE, thought=HOSTILE, answer=HOSTILE)
@settings(max_examples=30)
def test_what_holds_tags_is_written_escaped_and_read_as_one(
    name: str, query: str, thought: str, answer: str
) -> None:
    protocol = PROTOCOLS[name]
    begun = opened(protocol)
    written = begun + protocol.search(query, thought=thought, opened=begun)
    action = protocol.parse(written)
    assert isinstance(action, Search)
    assert action.queries == (read_as(name, protocol.escape(query)),), written
    assert not any(action.errors)
    again = begun + protocol.search(protocol.escape(query), thought=thought, opened=begun)
    assert again == written, "what was escaped stays as it is"
    turn = begun + protocol.answer(answer, thought, begun)
    assert not isinstance(protocol.parse(turn), Search)


def read_as(name: str, query: str) -> str:
    if name == "r1_searcher":
        return " ".join(query.replace('"', "").split())
    if name == "qwen3_coder":
        inner = ("<function=", "</function>", "<parameter=", "</parameter>")
        query = unreadable(query, inner)
    return query.strip()


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


@given(
    tags=st.lists(st.text("<>/ab", min_size=1, max_size=4), min_size=1, max_size=6),
    text=st.text("<>/ab", max_size=40),
)
def test_no_tag_is_left_where_tags_end_one_another(tags: list[str], text: str) -> None:
    escaped = unreadable(text, tuple(tags))
    for tag in tags:
        if not {*tag} <= {"a", "b"}:  # entities are letters too
            assert tag not in escaped


class Doubled(TagProtocol):
    """One tag ends as another."""

    tags: ClassVar[Tags] = {**TagProtocol.tags, "result": ("<<search>", "</<search>")}


def test_a_tag_within_a_tag_is_escaped() -> None:
    assert "<search>" not in Doubled().escape("<<search> </<search>")


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


@pytest.mark.parametrize("name", NAMES)
@given(text=HOSTILE)
@settings(max_examples=30)
def test_no_text_raises_and_the_parts_are_the_whole(name: str, text: str) -> None:
    protocol = PROTOCOLS[name]
    parts = protocol.parts(text)
    assert "".join(part.written for part in parts) == text
    if name != "r1_searcher":  # its thoughts go on through searches, and end one that is open
        assert all(part.closed for part in parts[:-1]), "an open block reaches to the end"
    action = protocol.parse(text)
    if isinstance(action, Search):
        assert len(action.queries) == len(action.problems) >= 1
    elif isinstance(action, Malformed):
        assert action.reason
    protocol.content(text)
    protocol.broken(text)
    protocol.broken(text, cut=True)
    protocol.overridden(text)
    assert protocol.unclosed(text).startswith(text)
    assert protocol.forges_reply(text) in (True, False)
    ends = [Segment("policy", text), Segment("env", text), Segment("policy", text)]
    error = protocol.format_error(ends)
    assert error is None or error


@pytest.mark.parametrize("name", NAMES)
@given(text=HOSTILE)
@settings(max_examples=30)
def test_no_tag_is_left_in_what_was_escaped(name: str, text: str) -> None:
    protocol = PROTOCOLS[name]
    tags = protocol.tags  # type: ignore[attr-defined]
    pairs = tags.values() if isinstance(tags, dict) else [tags]
    escaped = protocol.escape(text)
    assert not [tag for pair in pairs for tag in pair if tag in escaped]
    assert protocol.escape(escaped) == escaped


@pytest.mark.parametrize("name", NAMES)
@given(texts=st.lists(HOSTILE, min_size=1, max_size=3), queries=st.lists(HOSTILE, max_size=2))
@settings(max_examples=20)
def test_what_was_found_cannot_forge_a_message(
    name: str, texts: list[str], queries: list[str]
) -> None:
    protocol = PROTOCOLS[name]
    passages = [Passage(str(i), text) for i, text in enumerate(texts)]
    found = [Found(query, passages) for query in [*queries, "q"]]
    reply = protocol.reply(found, "note")
    pieces = protocol.pieces(reply)
    assert len(pieces) <= len(found)
    assert not any(piece.trusted for piece in pieces)
    assert isinstance(
        protocol.parse(searching(name, "q") + reply), type(protocol.parse("")) | Search
    )
    turns = [
        Segment("policy", opened(protocol) + searching(name, "q")),
        Segment("env", reply),
        Segment("policy", opened(protocol, 1) + answering(name, "x", turn=1)),
    ]
    assert protocol.format_error(turns) is None


@pytest.mark.parametrize("name", NAMES)
@given(contents=HOSTILE)
@settings(max_examples=20)
def test_what_a_reply_holds_comes_back(name: str, contents: str) -> None:
    protocol = PROTOCOLS[name]
    passage = Passage("1", contents)
    held = protocol.content(protocol.reply([Found("q", [passage])]))
    if isinstance(protocol, TagProtocol):
        assert held == protocol.document(1, protocol.escape(contents)).strip()
    else:
        assert held == protocol.escape(contents).strip()
    assert protocol.content(f" {contents} ") is not None


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


def test_queries_of_r1_searcher_lose_quotes_and_extra_space() -> None:
    turn = '<think> <|begin_of_query|> "boss"  of\tBakset <|end_of_query|>'
    assert PROTOCOLS["r1_searcher"].parse(turn) == Search(("boss of Bakset",))


def test_a_search_of_o2_may_hold_no_query_tag() -> None:
    assert PROTOCOLS["o2"].parse("<search> q </search>") == Search(("q",))
    assert PROTOCOLS["o2"].parse("<search><query> q</search>") == Search(("q",))
    assert PROTOCOLS["o2"].parse("<search></search>") == Search(("",))
    two = "<search><query>a</query>, <query>b</query></search>"
    assert PROTOCOLS["o2"].parse(two) == Search(("a", "b"))


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
