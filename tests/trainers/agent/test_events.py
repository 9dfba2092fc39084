"""What is told of an episode adds up to the episode, however it was cut into stretches."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.agents import Prediction
from research_rl.envs import Passage, Question
from research_rl.envs.protocols import PROTOCOLS, RESEARCH, Protocol
from research_rl.trainers.agent.asker import FoundPassages, Stretch
from research_rl.trainers.agent.events import EpisodeEvents, answer_told, passage_told
from research_rl.trainers.viewer import turn_parts

TURN = RESEARCH.search("boss of Bakset", thought="I need\nthe boss <of> it .")
PASSAGE = Passage("p", '"Bakset"\nthe boss is Domlor .', 1.5)


def shown(events: list[dict[str, Any]]) -> list[list[str]]:
    """The parts of one turn, as a page puts them together."""
    parts: list[list[str]] = []
    for event in events:
        if event["event"] == "part":
            del parts[event["part"] :]
            parts.append([event["kind"], event["text"]])
        elif event["event"] == "more":
            parts[event["part"]][1] += event["text"]
    return parts


def told(pieces: list[str], protocol: Protocol = RESEARCH) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    episode = EpisodeEvents(events.append, protocol)
    for piece in pieces:
        episode(Stretch("model", piece))
    episode.end()
    return events


@given(st.lists(st.integers(0, len(TURN)), max_size=20))
def test_a_turn_in_pieces_is_the_turn(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(TURN)]
    pieces = [TURN[a:b] for a, b in pairwise(places)]
    assert shown(told(pieces)) == [list(part[:2]) for part in turn_parts(TURN)]
    assert all("<th" not in str(e) and "</" not in str(e) for e in told(pieces))


@pytest.mark.parametrize("name", PROTOCOLS)
@given(text=st.text(st.sampled_from('<>/ab \nthinksearch{}"|'), max_size=60))
def test_any_text_can_be_told(name: str, text: str) -> None:
    protocol = PROTOCOLS[name]
    events = told(list(text), protocol)
    json.dumps(events)
    whole = [list(part[:2]) for part in turn_parts(text, protocol)]
    assert shown(events)[: len(whole)] == whole


def test_a_result_and_the_next_turn() -> None:
    events: list[dict[str, Any]] = []
    episode = EpisodeEvents(events.append)
    episode(Stretch("model", TURN))
    reply = " <result>\nBakset\nthe boss is Domlor .\n</result>"
    episode(Stretch("environment", reply, (FoundPassages("boss", (PASSAGE,)),)))
    episode(Stretch("model", "<think> so", turn=1))
    result = events[2]
    assert result["searches"] == [{"query": "boss", "passages": [passage_told(PASSAGE)]}]
    assert result["text"] == "Bakset\nthe boss is Domlor ."
    assert events[-1] == {"event": "part", "turn": 1, "part": 0, "kind": "think", "text": "so"}


def predicted(text: str, *contents: str, **fields: Any) -> Prediction:
    found = tuple(Passage(str(n), c, 1.0) for n, c in enumerate(contents))
    return Prediction(
        Question("ask", "Q", ("",)), text, queries=("q",), passages=(found,), **fields
    )


@pytest.mark.parametrize(
    ("answer", "contents", "holds"),
    [
        ("Domlor", "Bakset\nthe boss is domlor.", True),
        ("The Domlor", "Bakset\nthe boss is Domlor", True),
        ("Dom", "Bakset\nthe boss is Domlor", False),
        ("yes", "Bakset\nyes indeed", False),
        ("", "Bakset\nthe boss", False),
        ("!", "Bakset\n!", False),
        ("東京", "東京\n日本の首都", True),
    ],
)
def test_which_passages_hold_the_answer(answer: str, contents: str, holds: bool) -> None:
    (passage,) = answer_told(predicted(answer, contents))["passages"]
    assert passage["holds_answer"] is holds


def test_a_passage_is_told_once_and_named_by_each_search() -> None:
    found = (PASSAGE, Passage("r", "Rome\na city", float("nan")))
    prediction = Prediction(
        Question("ask", "Q", ("",)), "", queries=("a", "b"), passages=(found, found[:1])
    )
    answer = answer_told(prediction)
    assert [passage["id"] for passage in answer["passages"]] == ["p", "r"]
    assert [search["passages"] for search in answer["searches"]] == [["p", "r"], ["p"]]
    assert answer["passages"][1]["score"] is None
    assert answer["no_answer"] == "the answer is empty"


def test_a_source_is_shown_where_it_is_known() -> None:
    told = passage_told(Passage("1", "A\nb", 1.0, "docs/a.md#char=0,5"))
    assert told["source"] == "docs/a.md#char=0,5"
    assert "source" not in passage_told(PASSAGE)
    assert passage_told(PASSAGE)["title"] == "Bakset"
