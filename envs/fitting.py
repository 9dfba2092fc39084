"""A reply that is too long, made to fit: fewer passages, then shorter ones, then shorter notes.

Whole passages go first, from the end of the query that has most of them; then the last one of each
is halved; then queries and notes are cut. A hundred long passages take some ten renderings.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

from research_rl.envs.protocols import Found
from research_rl.envs.types import Passage

_LEAST = 16  # characters of a query or a note that are kept as long as others can go
Rows = list[list[Passage]]


def fitted(
    found: Sequence[Found], written: Callable[[Sequence[Found]], str], limit: int
) -> tuple[str, Rows]:
    """Return the longest reply within a limit, and the passages of each query that it shows.

    Args:
        found: what each query found; at least one.
        written: renders a reply. One with fewer or shorter passages must not be longer, for how
            many can stay is searched for by halving.
        limit: characters.
    """
    stages = _stages([one.passages for one in found])

    def at(stage: int) -> tuple[list[Found], str]:
        shown = [
            replace(one, passages=_left(one.passages, *left))
            for one, left in zip(found, stages[stage], strict=True)
        ]
        return shown, written(shown)

    shown, text = at(0)
    if len(text) > limit:
        last = len(stages) - 1
        lowest = min(1, last)
        few = bisect_left(range(last), True, lowest, key=lambda stage: len(at(stage)[1]) <= limit)
        shown, text = at(few)
    if len(text) > limit:
        text = _cut(shown, written, limit)
    return text, [list(one.passages) for one in shown]


def _stages(rows: Sequence[Sequence[Passage]]) -> list[list[tuple[int, int]]]:
    """What is left of each row at each stage: how many passages, how often the last is halved."""
    left = [(len(row), 0) for row in rows]
    stages = [left]
    while True:
        most = max(range(len(left)), key=lambda row: left[row][0])
        count, halvings = left[most]
        if not count:
            return stages
        more = count == 1 and len(rows[most][0].contents) >> halvings
        left = left.copy()
        left[most] = (1, halvings + 1) if more else (count - 1, 0)
        stages.append(left)


def _left(passages: Sequence[Passage], count: int, halvings: int) -> list[Passage]:
    kept = list(passages[:count])
    if halvings:
        contents = kept[-1].contents
        kept[-1] = replace(kept[-1], contents=contents[: len(contents) >> halvings])
    return kept


def _cut(found: Sequence[Found], written: Callable[[Sequence[Found]], str], limit: int) -> str:
    """Render what holds no passage within a limit: shorter texts, then fewer of them."""
    size = limit
    while True:
        text = written([Found(f.query[:size], (), f.note[:size]) for f in found])
        if len(text) <= limit:
            return text
        if size > _LEAST:
            size //= 2
        elif len(found) > 1:
            found = found[: len(found) // 2]
        else:
            return text[:limit]
