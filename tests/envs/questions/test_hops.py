"""Numbers of hops are whole numbers, whatever file holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs.questions.bad_rows import QuestionError
from research_rl.envs.questions.hops import hops_of, known_hops
from research_rl.envs.questions.read import question_from_dict, read_questions

ROW = {"question": "Who?", "answers": ["Ann"]}


@pytest.mark.parametrize("told", [2, 2.0, "2", " 2 ", "2.0"])
@pytest.mark.parametrize("inside", [False, True])
def test_a_number_is_a_number(told: Any, inside: bool) -> None:
    row = ROW | ({"metadata": {"hops": told}} if inside else {"hops": told})
    hops = question_from_dict(row).metadata["hops"]
    assert (hops, type(hops)) == (2, int)


@pytest.mark.parametrize("told", ["", " ", None, float("nan"), "NaN"])
def test_an_empty_cell_is_no_number(told: Any) -> None:
    assert "hops" not in question_from_dict(ROW | {"hops": told}).metadata
    row = ROW | {"hops": told, "supporting_titles": ["A", "B"]}
    assert question_from_dict(row).metadata["hops"] == 2, "what else tells it is asked"


@pytest.mark.parametrize("told", ["two", "2-hop", 2.5, True, -1, [2], float("inf"), 10**400, "٢"])
def test_anything_else_is_refused(told: Any) -> None:
    with pytest.raises(ValueError, match="hops must be a whole number, got "):
        question_from_dict(ROW | {"metadata": {"hops": told}})
    assert known_hops(told) is None


def test_a_table_says_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text("question,answer,hops\nWho?,Ann,2\nWhere?,Rome,\n")
    assert [q.metadata.get("hops") for q in read_questions(file)] == [2, None]
    file.write_text("question,answer,hops\nWho?,Ann,2\nWhere?,Rome,many\n")
    with pytest.raises(QuestionError, match=r"q\.csv.*3.*hops must be a whole number, got 'many'"):
        read_questions(file)


@given(st.integers(0, 999))
def test_ways_to_write_it_agree(number: int) -> None:
    written = (number, float(number), str(number), f"{number}.0")
    assert {hops_of(one) for one in written} == {number}
