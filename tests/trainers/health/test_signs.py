"""Signs of illness, whatever the policy writes: each equals its rule written out plainly."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs.protocols import RESEARCH
from research_rl.trainers.health.signs import thoughts

TAGS = [f"<{slash}{tag}>" for tag in ("think", "search", "result", "answer") for slash in ("", "/")]
TAGGY = st.lists(st.sampled_from([*TAGS, " a ", "<", "\n", "\ud800"]), max_size=20).map("".join)


def broken_by_one_pass(turn: str, cut: bool) -> bool:
    """The rule written as a state: which tag is open."""
    opened = ""
    for close, tag in re.findall(r"<(/?)(think|search|result|answer)>", turn):
        if tag == "result" or (opened == "think" and tag in ("search", "answer")):
            continue
        if bool(close) != bool(opened) or (close and tag != opened):
            return True
        opened = "" if close else tag
    return bool(opened) and not cut


@given(TAGGY, st.booleans())
def test_broken_tags_are_those_that_one_pass_finds(turn: str, cut: bool) -> None:
    assert RESEARCH.broken(turn, cut) == broken_by_one_pass(turn, cut)


@given(TAGGY)
def test_thoughts_are_what_stands_between_their_tags_wherever_they_are(turn: str) -> None:
    assert thoughts(turn) == re.findall(r"<think>(.*?)</think>", turn, re.DOTALL)
