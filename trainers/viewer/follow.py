"""The page ``questions.html``: the same question at two steps of a run, side by side.

It is made from the rows of ``rollouts.jsonl``, and holds the validation rollouts of the first
questions at steps that are spread over the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from research_rl.agents import Rollout
from research_rl.trainers.viewer.html import html_page, packed
from research_rl.trainers.viewer.page import json_finite, reward_terms, rollout_row

QUESTIONS_PAGE = "questions.html"
_MOST_QUESTIONS, _MOST_STEPS = 60, 12
_Seen = dict[tuple[str, str], dict[int, str]]
"""By id and text of a question the line of its rollout at each step."""


def questions_html(
    lines: Iterable[str], questions: int = _MOST_QUESTIONS, steps: int = _MOST_STEPS
) -> str:
    """Return the page as HTML.

    Args:
        lines: of rollouts.jsonl; what is no whole row is passed over.
        questions: how many are shown, the first ones; the page says how many are left out.
        steps: how many, the first and the last among them.
    """
    seen: _Seen = {}
    left_out = set()
    for key, step, line in _validated(lines):
        if key in seen or len(seen) < questions:
            seen.setdefault(key, {}).setdefault(step, line)
        else:
            left_out.add(key)
    every = sorted({step for found in seen.values() for step in found})
    chosen = _spread(every, steps)
    data = {"steps": chosen, "questions": [_question(found, chosen) for found in seen.values()]}
    more = len(every) - len(chosen)
    notes = [f"{more} steps between are left out; each has a page of its own."] * bool(more)
    if left_out:
        notes.append(f"The first {len(seen)} of {len(seen) + len(left_out):,} questions are here.")
    title = "The same question at two steps"
    return html_page(
        "questions.html", title=title, data=packed(json_finite(data)), note=" ".join(notes)
    )


def _validated(lines: Iterable[str]) -> Iterator[tuple[tuple[str, str], int, str]]:
    for line in lines:
        try:
            row = json.loads(line)
            if row["split"] == "val":
                yield (str(row["question_id"]), str(row["question"])), int(row["step"]), line
        except (ValueError, KeyError, TypeError):  # the end of a run that was killed while writing
            continue


def _question(found: dict[int, str], chosen: list[int]) -> dict[str, Any]:
    looks = {step: json.loads(found[step]) for step in chosen if step in found}
    first = next(iter(looks.values()), None) or json.loads(next(iter(found.values())))
    return {
        "id": first["question_id"],
        "question": first["question"],
        "answers": list(first["answers"]),
        "hops": first.get("hops"),
        "gold": [],
        "looks": {step: _look(row) for step, row in looks.items()},
    }


def _look(row: dict[str, Any]) -> dict[str, Any]:
    rollout = Rollout.from_row(row)
    return rollout_row(rollout, row.get("advantage"), False) | {"terms": reward_terms(row)}


def _spread(steps: list[int], most: int) -> list[int]:
    """At most so many steps, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
