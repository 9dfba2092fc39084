"""Questions whose rollouts can be followed over the steps of a run.

Every validation asks the same questions. A question that is wrong at step 0 and right at step 20
shows what was learned; one that went the other way shows what was lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple

from research_rl.envs.questions import known_hops
from research_rl.trainers.overview.folder import JsonRow, RunFolder, texts

Mark = Literal["right", "wrong", "format"]
_QUESTIONS, _STEPS = 12, 10


class Look(NamedTuple):
    """A question at one step: how it was answered, and where the rollout is."""

    step: int
    mark: Mark
    answer: str
    searches: int
    link: str


class Followed(NamedTuple):
    """A question over the steps; None where a step has no rollout of it."""

    question: str
    answers: str
    hops: str
    looks: list[Look | None]


def followed_questions(
    run: RunFolder, most: int = _QUESTIONS, steps: int = _STEPS
) -> tuple[list[int], list[Followed]]:
    """Return the steps, and the questions that changed most, each with its looks.

    Args:
        run: whose validation rollouts are followed.
        most: questions.
        steps: of the run, its first and last among them.
    """
    looks: dict[tuple[str, str], dict[int, Look]] = {}
    rows: dict[tuple[str, str], JsonRow] = {}
    place: dict[int, int] = {}
    for row in run.rollouts:
        if row["split"] != "val":
            continue
        step = int(row["step"])
        place[step] = place.get(step, 0) + 1
        key = texts(row["question_id"]), texts(row["question"])
        rows.setdefault(key, row)
        looks.setdefault(key, {}).setdefault(step, _look(row, step, place[step]))
    chosen = spread(sorted(place), steps)
    ranked = sorted(looks, key=lambda key: _rank(looks[key], chosen))
    found = [
        Followed(
            key[1],
            " or ".join(texts(a, 80) for a in _texts_in(rows[key].get("answers"))),
            f"{hops}-hop" if (hops := known_hops(rows[key].get("hops"))) else "",
            [looks[key].get(step) for step in chosen],
        )
        for key in ranked[:most]
    ]
    return chosen, found


def spread(steps: list[int], most: int) -> list[int]:
    """Return at most so many steps, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return steps
    if most < 2:
        return steps[-1:]
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def mark_of(row: JsonRow) -> Mark:
    """Return how a rollout ended: right is an exact match of right form."""
    if row.get("format_error") is not None:
        return "format"
    return "right" if row.get("em") == 1.0 else "wrong"


def _look(row: JsonRow, step: int, place: int) -> Look:
    queries = row.get("queries")
    return Look(
        step,
        mark_of(row),
        texts(row.get("prediction") or "", 80),
        len(queries) if isinstance(queries, list) else 0,
        f"rollouts/val_{step:06d}.html#{place}",
    )


def _rank(looks: dict[int, Look], chosen: Iterable[int]) -> tuple[int, int]:
    """Those that were lost first, then those that were learned, then the others."""
    marks = [looks[step].mark == "right" for step in chosen if step in looks]
    changes = sum(a != b for a, b in pairwise(marks))
    if not changes:
        return 2, -len(marks)
    return (0 if marks[0] and not marks[-1] else 1), -changes


def _texts_in(value: object) -> list[str]:
    return [texts(item) for item in value] if isinstance(value, list) else []
