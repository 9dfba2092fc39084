"""What commands say to a wrong word."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs.system import CommandLine, did_you_mean, printable, printable_json


def test_the_nearest_known_name_is_suggested() -> None:
    assert did_you_mean("fti", ["fit", "test"]) == "; did you mean fit?"
    assert did_you_mean("dens", ("dense", "bm25"), quoted=True) == "; did you mean 'dense'?"
    assert did_you_mean("nothing like it", ["fit"]) == ""
    assert did_you_mean(3, []) == ""


@given(st.text(), st.lists(st.text()))
def test_only_a_known_name_is_suggested(written: str, known: list[str]) -> None:
    assert did_you_mean(written, known) in {"", *(f"; did you mean {name}?" for name in known)}
    if written in known:
        assert did_you_mean(written, known) == f"; did you mean {written}?"


def test_a_usage_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        CommandLine(prog="research x").parse_args(["--none"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "research: error: unrecognized arguments: --none; see research x --help\n"


@given(st.text())
def test_json_that_may_be_printed_says_the_same(text: str) -> None:
    said = printable_json(json.dumps({"a": text}, ensure_ascii=False))
    assert printable(said) == said
    assert json.loads(said) == {"a": text}
