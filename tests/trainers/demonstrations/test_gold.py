"""Gold episodes search only for what was named, read what was found, and are paid in full."""

from __future__ import annotations

import json
from typing import Any

import pytest
from doubles.titles import Titles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research_rl.agents import Rollout
from research_rl.envs import (
    Episode,
    Question,
    Rules,
    get_prompt,
    get_reward,
    parse_action,
)
from research_rl.envs.protocols import PROTOCOLS, Answer, Search
from research_rl.trainers.demonstrations import gold
from research_rl.trainers.demonstrations.gold import GoldPlayer, evidence_titles
from research_rl.trainers.demonstrations.sources import text_rollout


def question(text: str, answer: str, *titles: str) -> Question:
    return Question(text, text, (answer,), {"supporting_titles": list(titles)})


BRIDGE = question(
    "What position was held by the woman who starred in Kiss and Tell?",
    "Chief of Protocol",
    "Shirley Temple",
    "Kiss and Tell (1945 film)",
)
COMPARED = question("Are Bruges and Ghent both in Belgium?", "yes", "Ghent", "Bruges")


def player(quote: bool = True, **rules: Any) -> GoldPlayer:
    settings = Rules(get_prompt("base"), get_reward("default"), **rules)
    return GoldPlayer(settings, Titles(), top_k=1, quote=quote)


def played(one: Question, **settings: Any) -> Episode:
    (episode,) = player(**settings).play([one])
    assert isinstance(episode, Episode), episode
    return episode


def test_a_bridge_is_searched_in_the_order_in_which_names_appear() -> None:
    episode = played(BRIDGE)
    assert episode.queries == ["Kiss and Tell", "Shirley Temple"]
    assert episode.reward is not None
    assert (episode.reward.value, episode.reward.format_error) == (1.0, None)
    assert "It says: It stars Shirley Temple. Next I need to know" in episode.turns[1]
    assert "It says: She became Chief of Protocol in 1976." in episode.turns[2]


def test_a_title_is_the_passage_s_own_in_another_writing() -> None:
    titles = ("“Shirley  Temple”", "Kiss  and Tell (1945 FILM)")
    episode = played(question(BRIDGE.text, "Chief of Protocol", *titles))
    assert episode.queries == ["Kiss and Tell", "Shirley Temple"]
    assert episode.reward is not None
    assert episode.reward.value == 1.0


def steps(*told: tuple[str, str, str], answer: str = "Chief of Protocol") -> Question:
    names = ("question", "answer", "passage")
    known = [dict(zip(names, one, strict=True)) for one in told]
    return Question("steps", BRIDGE.text, (answer,), {"decomposition": known})


FIRST = ("starred in Kiss and Tell", "Shirley Temple", "Kiss and Tell (1945 film)")


def test_stated_steps_are_played_with_their_own_queries() -> None:
    second = ("position held by Shirley Temple", "Chief of Protocol", "Shirley Temple")
    episode = played(steps(FIRST, second))
    assert episode.queries == ["starred in Kiss and Tell", "position held by Shirley Temple"]
    assert episode.reward is not None
    assert episode.reward.value == 1.0
    assert (
        "It says: It stars Shirley Temple. Next I need to know about position" in episode.turns[1]
    )


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ((FIRST, ("Temple the diplomat", "x", "Shirley Temple")), gold.NOT_NAMED),
        ((FIRST, ("Shirley Temple", "x", "Ghent")), gold.NOT_FOUND),
        ((FIRST, ("Shirley Temple", "x", "")), gold.NO_EVIDENCE),
        ((FIRST,), gold.NO_ANSWER),
        ((FIRST,) * 3, gold.TOO_MANY),
    ],
)
def test_steps_that_cannot_be_played(told: Any, why: str) -> None:
    assert player(max_searches=2).play([steps(*told)]) == [why]


def test_thoughts_need_not_quote() -> None:
    assert not any("It says" in turn for turn in played(BRIDGE, quote=False).turns)


def test_what_is_compared_is_searched_in_the_question_s_order() -> None:
    episode = played(COMPARED)
    assert episode.queries == ["Bruges", "Ghent"]
    assert parse_action(episode.turns[-1]) == Answer("yes")


@pytest.mark.parametrize("one", [BRIDGE, COMPARED], ids=["bridge", "compared"])
def test_a_query_holds_only_what_was_shown_before(one: Question) -> None:
    episode = played(one)
    shown = one.text
    for turn, result in zip(episode.turns, episode.results, strict=False):
        action = parse_action(turn)
        assert isinstance(action, Search)
        assert action.query in shown
        shown += result


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (Question("q", "Who?", ("x",)), gold.NO_EVIDENCE),
        (question("Where is Bruges?", "Belgium", "Bruges", "Ghent"), gold.NOT_NAMED),
        (question("Where is Antwerp?", "Belgium", "Antwerp"), gold.NOT_FOUND),
        (question("Where is Bruges?", "Flanders", "Bruges"), gold.NO_ANSWER),
    ],
)
def test_what_cannot_be_played_is_left_out_with_its_reason(one: Question, reason: str) -> None:
    assert player().play([one]) == [reason]


def test_more_passages_than_searches() -> None:
    assert player(max_searches=1).play([BRIDGE]) == [gold.TOO_MANY]


def test_all_questions_search_together() -> None:
    both = player()
    both.play([BRIDGE, COMPARED])
    retriever = both.retriever
    assert isinstance(retriever, Titles)
    assert [len(call) for call in retriever.calls] == [2, 2]


def test_top_k_must_be_positive() -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        GoldPlayer(player().rules, Titles(), top_k=0)


@pytest.mark.parametrize(
    "metadata",
    [
        {"supporting_titles": ["A", "B"]},
        {"supporting_facts": [["A", 0], ["B", 1]]},
        {"supporting_facts": {"title": ["A", "B"], "sent_id": [0, 1]}},
    ],
)
def test_evidence_in_every_layout(metadata: dict[str, Any]) -> None:
    assert evidence_titles(metadata) == ["A", "B"]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text(min_size=1, max_size=40), st.text(max_size=60), st.text(max_size=60))
def test_hostile_titles_questions_and_answers_never_raise(
    title: str, text: str, answer: str
) -> None:
    outcome = player().play([question(text, answer, title)])
    assert isinstance(outcome[0], str | Episode)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_dialect_is_demonstrated(name: str) -> None:
    protocol = PROTOCOLS[name]
    prompt = get_prompt("instruct", protocol)
    rules = Rules(prompt, get_reward("default", protocol=protocol), protocol=protocol)
    for one in (BRIDGE, COMPARED):
        (episode,) = GoldPlayer(rules, Titles(), top_k=1).play([one])
        assert isinstance(episode, Episode), episode
        assert len(episode.queries) == 2
        assert episode.reward is not None
        assert (episode.reward.value, episode.reward.format_error) == (1.0, None), episode.turns
        rollout = text_rollout(episode)
        again = Rollout.from_row(json.loads(json.dumps(rollout.to_row())))
        assert (again.protocol, again.opened) == (protocol, episode.opened)
        assert [s.text for s in episode.segments if s.kind == "policy"] == again.whole_turns


@pytest.mark.parametrize(
    ("text", "name", "held"),
    [
        ("北京是中国的首都。", "中国", True),
        ("กรุงเทพเป็นเมืองหลวงของไทย", "เมืองหลวง", True),
        ("Beyonce\u0301 sings", "Beyonc\u00e9", True),
        ("Russia", "us", False),
        ("東京 is large", "東京", True),
        ("the Oslofjord", "Oslo", False),
    ],
)
def test_whole_words_are_looked_for_where_a_script_has_spaces(
    text: str, name: str, held: bool
) -> None:
    assert gold._holds(text, name) == held
