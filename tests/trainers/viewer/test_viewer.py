"""Rollouts as text and as a page: everything is in it, and nothing in it can get out."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from doubles.sample_rollouts import HOSTILE, rollout, rollouts
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.agents import Rollout
from research_rl.envs.protocols import Part
from research_rl.trainers.viewer.page import (
    reward_terms,
    rollout_parts,
    rollout_text,
    rollouts_html,
    turn_parts,
    verdict,
)

ANY_TEXT = st.text(st.characters(), max_size=60) | st.lists(
    st.sampled_from(["<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>", "x"])
).map("".join)


class Page(HTMLParser):
    """Reads a page as a browser would: its data, its scripts, its addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_data(self, data: str) -> None:
        tag = self.tags[-1] if self.tags else ""
        self.texts[tag] = self.texts.get(tag, "") + data


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found is not None
    return json.loads(found[1])


def test_parts_of_a_turn() -> None:
    turn = " a <think> b </think> c <search> d </search>"
    found = [(part.kind, part.text) for part in turn_parts(turn)]
    assert found == [("text", "a"), ("think", "b"), ("text", "c"), ("search", "d")]
    assert turn_parts("<answer> \\boxed{x}") == [Part("answer", "\\boxed{x}", closed=False)]
    assert turn_parts("") == []


@given(ANY_TEXT)
@settings(max_examples=100, deadline=None)
def test_parts_lose_nothing_but_tags(turn: str) -> None:
    def letters(text: str) -> str:
        return re.sub(r"</?(think|search|answer)>|\s", "", text)

    assert letters("".join(part.text for part in turn_parts(turn))) == letters(turn)


def test_parts_follow_the_rollout() -> None:
    kinds = [part.kind for part in rollout_parts(rollout())]
    assert kinds == ["think", "search", "result", "think", "answer"]
    assert rollout_parts(rollout())[2].text.startswith("Bakset\nthe boss")


def test_verdicts() -> None:
    assert [verdict(r) for r in rollouts()] == ["right", "wrong", "format", "right", "wrong"]


def test_text_says_everything() -> None:
    text = rollout_text(rollout("format"), advantage=-0.25)
    for said in (
        "Who is the boss of Bakset ?",
        "gold      Domlor",
        "search    the boss of Bakset",
        "the boss of Veros is Tamin .",
        "reward    0.00 | F1 0.00 | 1 search | advantage -0.25 | finished: no_answer",
        "format error: <answer> is not closed",
    ):
        assert said in text
    assert "\x1b" not in text
    assert text.endswith("\n")


def test_colour_adds_only_colour() -> None:
    plain, coloured = rollout_text(rollout()), rollout_text(rollout(), colour=True)
    assert re.sub("\x1b\\[[0-9;]*m", "", coloured) == plain != coloured


def test_retrieved_text_cannot_steer_a_terminal() -> None:
    assert "\x1b" not in rollout_text(rollout(passage="x\x1b]0;owned\x07"))


def test_page_holds_the_rollouts_by_question() -> None:
    some = rollouts()
    order = [some[0], some[3], some[1], some[4], some[2]]
    data = data_of(rollouts_html(order, [1.0, 2.0, 3.0, 4.0, 5.0]))
    assert [len(g["rollouts"]) for g in data["groups"]] == [3, 2]
    assert [r["advantage"] for r in data["groups"][0]["rollouts"]] == [1.0, 3.0, 5.0]
    first = data["groups"][0]["rollouts"][0]
    assert first["found"] == [["p1", "p2"]]
    assert (first["sampled"], first["given"]) == (5, 2)
    assert "ids" not in first


def test_only_real_searches_have_passages() -> None:
    one = rollout()
    nothing = " <result>\nnothing to search\n</result>"
    odd = replace(one, turns=["</search>", *one.turns], results=[nothing, *one.results])
    assert data_of(rollouts_html([odd]))["groups"][0]["rollouts"][0]["found"] == [[], ["p1", "p2"]]


def words(ids: list[int]) -> str:
    return " ".join(f"t{i}" for i in ids)


def test_tokens_are_there_when_they_can_be_read() -> None:
    data = data_of(rollouts_html([rollout()], decode=words))
    assert data["vocabulary"]["21"] == " t21", "with the space that stands before it"
    row = data["groups"][0]["rollouts"][0]
    assert row["ids"] == [11, 12, 13, 21, 22, 14, 15]
    assert row["logprobs"] == [-0.5, -0.5, -0.5, None, None, -0.1, -0.1]


def test_page_stands_alone() -> None:
    page = Page(rollouts_html(rollouts()))
    assert page.addresses == ["data:,"]
    assert page.tags.count("script") == 2
    assert "http://" not in page.texts["script"] + page.texts["style"]


@pytest.mark.parametrize("hostile", [HOSTILE, "{{script}}", "\\1 \\g<0>", "\ud800\udfff\udc00"])
def test_hostile_text_stays_text(hostile: str) -> None:
    text = rollouts_html([rollout(question=hostile, passage=hostile)], title=hostile)
    text.encode("utf-8")
    clean = Page(rollouts_html([rollout()]))
    assert Page(text).tags == clean.tags
    group = data_of(text)["groups"][0]
    assert group["question"] == hostile.encode("utf-16", "surrogatepass").decode(
        "utf-16", "surrogatepass"
    )
    assert group["rollouts"][0]["parts"][2][1].startswith(group["question"])


@given(ANY_TEXT)
@settings(max_examples=50, deadline=None)
def test_any_text_is_a_page(text: str) -> None:
    one = rollout(question=text, passage=text)
    one = replace(one, turns=[text, text])
    rollouts_html([one]).encode("utf-8")
    rollout_text(one, colour=True)


def test_numbers_that_json_lacks() -> None:
    one = rollout()
    broken = replace(one, reward=replace(one.reward, value=math.nan))
    row = data_of(rollouts_html([broken], [math.inf]))["groups"][0]["rollouts"][0]
    assert row["reward"] is None
    assert row["advantage"] is None


def test_advantages_must_fit() -> None:
    with pytest.raises(ValueError, match="one for each of 5 rollouts, got 2"):
        rollouts_html(rollouts(), [1.0, 2.0])


def test_named_parts_of_a_reward() -> None:
    class InParts:
        parts: Any = {"form": 0.1, "answer": 1, "odd": "x", "lost": math.nan, "flag": True}  # noqa: RUF012

    assert reward_terms(InParts()) == {"form": 0.1, "answer": 1.0}
    assert reward_terms({"parts": {"form": 0.5}}) == {"form": 0.5}
    for nothing in (rollout().reward, {}, {"parts": [1]}, {"parts": None}, None, 3):
        assert reward_terms(nothing) == {}


def test_a_rollout_of_text_alone_has_a_page() -> None:
    row = {k: v for k, v in rollout().to_row().items() if k not in ("response_ids", "loss_mask")}
    for name in ("prompt_ids", "logprobs", "turn_start", "finish", "versions"):
        row.pop(name, None)
    shown = data_of(rollouts_html([Rollout.from_row(row)]))["groups"][0]["rollouts"][0]
    assert (shown["sampled"], shown["given"]) == (None, None)
