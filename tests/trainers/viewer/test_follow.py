"""The page of the same questions at two steps: whatever the rows are, it shows what is whole."""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any

from doubles.run_folders import rollout_row
from doubles.sample_rollouts import HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.trainers.viewer.follow import questions_html


def lines(*rows: dict[str, Any]) -> list[str]:
    return [json.dumps(row) + "\n" for row in rows]


def data_of(page: str) -> Any:
    found = re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', page)
    assert found is not None
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


def test_questions_have_a_rollout_for_each_step() -> None:
    rows = [rollout_row(step, n, step > 0) for step in (0, 5) for n in range(3)]
    rows.append(rollout_row(5, 9, True))
    rows.append(rollout_row(3, 1, True, split="train"))
    data = data_of(questions_html(lines(*rows)))
    assert data["steps"] == [0, 5]
    assert [q["question"] for q in data["questions"]][-1] == "Who owns house 9 ?"
    first = data["questions"][0]
    assert [first["looks"][step]["verdict"] for step in ("0", "5")] == ["wrong", "right"]
    assert first["looks"]["0"]["parts"][1] == ["search", "house"]
    assert list(data["questions"][3]["looks"]) == ["5"]


def test_it_is_bounded_and_says_so() -> None:
    rows = [rollout_row(step, n, True) for step in range(30) for n in range(5)]
    page = questions_html(lines(*rows), questions=2, steps=4)
    data = data_of(page)
    assert (data["steps"], len(data["questions"])) == ([0, 10, 19, 29], 2)
    assert "26 steps between are left out" in page
    assert "The first 2 of 5 questions are here." in page
    assert "questions are here" not in questions_html(lines(*rows), questions=5)


def test_parts_of_a_reward_and_other_dialects_are_shown() -> None:
    turn = 'hm <tool_call>\n{"name": "search", "arguments": {"query": "house"}}\n</tool_call>'
    row = rollout_row(0, 1, True, protocol="hermes", turns=[turn, "x"], parts={"form": 0.25})
    look = data_of(questions_html(lines(row)))["questions"][0]["looks"]["0"]
    assert look["terms"] == {"form": 0.25}
    assert [kind for kind, _ in look["parts"][:2]] == ["text", "search"]
    assert "house" in look["parts"][1][1]


def test_what_is_half_written_is_passed_over() -> None:
    good = lines(rollout_row(0, 1, True))
    page = questions_html(["[1]\n", '{"split": "val"}\n', *good, '{"split": "val", "step": 3'])
    assert len(data_of(page)["questions"]) == 1
    assert data_of(questions_html([])) == {"steps": [], "questions": []}


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_text_stays_data(text: str) -> None:
    for odd in (text, HOSTILE):
        turns = {"turns": [odd, f"<answer>{odd}</answer>"], "results": [odd], "answers": [odd]}
        page = questions_html(lines(rollout_row(0, 1, True, question=odd, **turns)))
        assert page.count("<script") == 2
        page.encode("utf-8")
