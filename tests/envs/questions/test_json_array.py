"""A JSON array is read row by row through a window of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from research_rl.envs.questions import json_array
from research_rl.envs.questions.bad_rows import QuestionError
from research_rl.envs.questions.files import open_rows

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(st.lists(JSON, max_size=6), st.integers(2, 40), st.sampled_from([None, 1]), st.booleans())
def test_arrays_are_read_through_any_window(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[Any],
    block: int,
    indent: int | None,
    ascii_only: bool,
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + "\n", "utf-8")
    if not rows:
        path.write_text("[ ]")
    monkeypatch.setattr(json_array, "_BLOCK", block)
    assert [row for _, row in open_rows(path)[1]] == rows


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(st.text(alphabet='[]{}",:1a\n ', max_size=20), st.integers(2, 30))
def test_a_broken_array_is_a_question_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: str, block: int
) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[" + tail)
    monkeypatch.setattr(json_array, "_BLOCK", block)
    try:
        rows = [row for _, row in open_rows(path)[1]]
    except QuestionError as error:
        assert error.line is None or error.line <= 1 + tail.count("\n")  # noqa: PT017
    else:
        assert json.loads("[" + tail) == rows


def test_lines_of_an_array_are_counted_through_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n{"a": 1},\n\n{"a":\n 2}, {"a": 3}\n,{"a" 4}]')
    monkeypatch.setattr(json_array, "_BLOCK", 8)
    lines: list[int] = []
    with pytest.raises(QuestionError, match=r"rows\.json:6: must be a JSON array"):
        lines.extend(line for line, _ in open_rows(path)[1])
    monkeypatch.undo()
    path.write_text('[\n{"a": 1},\n\n{"a":\n 2}, {"a": 3}\n]')
    assert [line for line, _ in open_rows(path)[1]] == [2, 4, 5]


def test_a_row_is_given_before_what_follows_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(
        b'[{"a": 1},\n {"a": "' + b"x" * 100 + b'"},' + b" " * 300 + b'\n {"a": "caf\xe9"}]'
    )
    monkeypatch.setattr(json_array, "_BLOCK", 16)
    rows = open_rows(path)[1]
    assert next(rows) == (1, {"a": 1})
    assert next(rows)[0] == 2
    with pytest.raises(QuestionError, match=r"rows\.json:3: must be UTF-8, got byte 0xe9"):
        next(rows)


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize(
    "text", ['[1, "\u00e9\u20ac\U0001f600"]', '{"Data": [1, "\u00e9\u20ac\U0001f600"], "V": 1.0}']
)
def test_an_array_behind_a_byte_order_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, "utf-8-sig")
    monkeypatch.setattr(json_array, "_BLOCK", block)
    assert [row for _, row in open_rows(path)[1]] == [1, "\u00e9\u20ac\U0001f600"]
    path.write_bytes(path.read_bytes()[:14])  # ends within a character, or within the array
    with pytest.raises(QuestionError, match=r"rows\.json:1: must be"):
        list(open_rows(path)[1])


def test_two_arrays_in_one_file_are_not_half_read(tmp_path: Path) -> None:
    path = tmp_path / "both.json"
    path.write_text('[{"id": "a"}]\n[{"id": "b"}]\n')
    with pytest.raises(QuestionError, match=r"both\.json:2: must be one JSON array, got '\[\{"):
        list(open_rows(path)[1])
