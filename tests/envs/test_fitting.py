"""A reply that is too long is made to fit, in few renderings and as one passage at a time would."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.envs.fitting import fitted
from research_rl.envs.protocols import PROTOCOLS, Found
from research_rl.envs.types import Passage

TEXTS = st.text(alphabet="ab<>/search \n\r\u2028é", max_size=30)


def one_at_a_time(
    found: Sequence[Found], name: str, limit: int
) -> tuple[str, list[list[Passage]]] | None:
    """The rule, followed literally; None where queries and notes must be cut too."""
    rows = [list(one.passages) for one in found]
    while True:
        shown = [Found(f.query, row, f.note) for f, row in zip(found, rows, strict=True)]
        text = PROTOCOLS[name].reply(shown, "the end")
        if len(text) <= limit:
            return text, rows
        most = max(rows, key=len)
        if not most:
            return None
        last = most.pop()
        if not most and last.contents:
            half = last.contents[: len(last.contents) // 2]
            most.append(Passage(last.id, half, last.score))


@pytest.mark.parametrize("name", PROTOCOLS)
@given(
    rows=st.lists(st.lists(TEXTS, max_size=5), min_size=1, max_size=4),
    limit=st.integers(1, 400),
)
@settings(max_examples=40)
def test_it_is_what_one_passage_at_a_time_would_leave(
    name: str, rows: list[list[str]], limit: int
) -> None:
    found = [
        Found("q", [Passage(str(n), text, 0.0) for n, text in enumerate(row)], "none" * (not row))
        for row in rows
    ]
    wanted = one_at_a_time(found, name, limit)
    text, shown = fitted(found, lambda f: PROTOCOLS[name].reply(f, "the end"), limit)
    if wanted is None:
        assert len(text) <= limit
        assert not any(shown)
    else:
        assert (text, shown) == wanted


def test_hundreds_of_long_passages_take_few_renderings() -> None:
    renderings = []

    def written(found: Sequence[Found]) -> str:
        renderings.append(found)
        return PROTOCOLS["research"].reply(found)

    passages = [Passage(f"{n}", "word " * 2000, 0.0) for n in range(800)]
    text, shown = fitted([Found("q", passages)], written, 32768)
    assert len(text) <= 32768
    assert len(shown[0]) == 3
    assert len(renderings) <= 12
    renderings.clear()
    fitted([Found("q", passages[:2])], written, 32768)
    assert len(renderings) == 1
