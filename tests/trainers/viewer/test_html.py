"""Templates: what is filled in stays text, and no page may load anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doubles.places import ROOT
from doubles.sample_rollouts import HOSTILE
from jinja2 import UndefinedError
from markupsafe import escape

from research_rl.trainers.viewer.html import html_page
from research_rl.trainers.viewer.page import rollouts_html

TEMPLATES = sorted((ROOT / "trainers").rglob("templates/*.html"))
BASE = ROOT / "trainers/viewer/templates/base.html"


def index(**changes: Any) -> str:
    values = {"title": "T", "rows": "r.jsonl", "splits": {}, "steps": [], "means": {}}
    values |= {"questions": "", "run": ""}
    return html_page("index.html", **(values | changes))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_page_has_the_policy_of_the_base(path: Path) -> None:
    text = path.read_text("utf-8")
    assert path == BASE or text.startswith('{% extends "base.html" %}\n')
    assert ("Content-Security-Policy" in text) == (path == BASE), "it stands in one place"
    assert "| safe" not in text
    assert "autoescape" not in text


def test_the_policy_lets_nothing_be_loaded() -> None:
    for page in (index(), rollouts_html([])):
        assert 'http-equiv="Content-Security-Policy" content="default-src \'none\';' in page
        assert "connect-src" not in page


@pytest.mark.parametrize("hostile", [HOSTILE, "{{ rows }}", "{% raw %}", "<\ud800>"])
def test_what_is_filled_in_stays_text(hostile: str) -> None:
    page = index(
        title=hostile,
        rows=f'"{hostile}"',
        splits={"val": hostile},
        steps=[(1, {"val": hostile})],
        means={("val", 1): hostile},
        questions=hostile,
        run=hostile,
    )
    page.encode("utf-8")
    assert page.count("<script") == page.count("<img") == 0
    assert page.count(escape(hostile.encode("utf-8", "replace").decode())) == 9


def test_style_sheets_and_scripts_stand_as_they_are() -> None:
    page = rollouts_html([])
    for name in ("base.css", "rollouts.css", "base.js", "parts.js", "rollouts.js"):
        assert BASE.with_name(name).read_text("utf-8") in page


def test_a_value_that_is_not_given_is_refused() -> None:
    values = {"title": "T", "splits": {}, "steps": [], "means": {}, "run": "", "questions": ""}
    with pytest.raises(UndefinedError, match="'rows' is undefined"):
        html_page("index.html", **values)
