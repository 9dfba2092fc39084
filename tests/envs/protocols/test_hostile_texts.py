"""No text can break a dialect: nothing raises, no tag is forged, what was escaped stays so."""

from __future__ import annotations

from typing import ClassVar

import pytest
from doubles.dialect_turns import NAMES, TAGS, answering, opened, searching
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.envs.protocols import PROTOCOLS, Found, Malformed, Search, Segment, TagProtocol
from research_rl.envs.protocols.boxes import unreadable
from research_rl.envs.protocols.tags import Tags
from research_rl.envs.types import Passage

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
