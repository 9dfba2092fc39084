"""Text for a terminal: coloured where that can be shown, and harmless whatever it holds."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs import Segment
from research_rl.envs.render import paint, printable, render_ansi, shows_colour

ANY = st.text(alphabet=st.characters(exclude_categories=()))
STYLES = ("think", "search", "result", "answer", "prompt", "heading", "note", "error")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "0"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colour_is_for_terminals_whose_user_wants_it(
    variables: dict[str, str], shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert shows_colour(Terminal()) == shown
    assert not shows_colour(io.StringIO())


@given(ANY)
def test_any_text_is_printable(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert len(shown) == len(text)
    harmful = re.compile(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
    )
    assert not harmful.search(shown)
    assert all(a == b or harmful.match(a) for a, b in zip(text, shown, strict=True))
    assert printable(shown) == shown


@given(ANY, st.sampled_from(STYLES))
def test_paint_adds_nothing_but_colour(text: str, style: str) -> None:
    coloured = paint(style, text)  # type: ignore[arg-type]
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == printable(text) != coloured
    assert paint(style, text, colour=False) == printable(text)  # type: ignore[arg-type]
    assert paint("text", text) == printable(text)


@given(ANY, st.lists(st.tuples(st.sampled_from(["policy", "env"]), ANY)))
def test_an_episode_is_shown_whole(prompt: str, said: list[tuple[str, str]]) -> None:
    segments = [Segment(kind, text) for kind, text in said]  # type: ignore[arg-type]
    plain = re.sub(r"\x1b\[[\d;]*m", "", render_ansi(prompt, segments))
    ends = [text + "\n" * (kind == "env") for kind, text in said]
    assert plain == printable("".join([prompt, "\n", *ends]))
