"""What the documentation names is there: files, dotted names, links, and the map of the rooms."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.mentions import missing, resolves
from doubles.places import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_DEFINED_IN = re.compile(r"`([\w/]+\.py)`: (`[\w.]+`(?:, `[\w.]+`)*)")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_map_is_what_the_door_plates_say() -> None:
    page = text_of("docs/architecture.md")
    made = runpy.run_path(str(ROOT / "docs" / "architecture.py"))["made"]
    assert made(page) == page, "renew docs/architecture.md with: python docs/architecture.py"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_what_a_page_mentions_is_there(name: str) -> None:
    assert not list(missing(text_of(name)))


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    assert not list(broken_links(ROOT / name))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stands_in_the_file_that_is_given_for_it(name: str) -> None:
    for file, names in _DEFINED_IN.findall(text_of(name)):
        module = "research_rl." + file.removesuffix(".py").replace("/", ".")
        strangers = [n for n in re.findall(r"\w+", names) if not resolves(f"{module}.{n}")]
        assert not strangers, f"{file} does not hold {strangers}"


def test_ten_questions_take_few_files() -> None:
    section = text_of("docs/architecture.md").partition("## Ten questions")[2]
    rows = re.findall(r"^\| [^|]+\? \| (.+) \| (\d+) \|$", section, re.MULTILINE)
    assert len(rows) == 10
    assert [len(set(re.findall(r"[\w/]+\.py", row))) for row, _ in rows] == [
        int(n) for _, n in rows
    ]
    assert sum(int(number) for _, number in rows) <= 19


def test_an_index_page_can_follow_every_link_of_the_readme() -> None:
    absolute = runpy.run_path(str(ROOT / "docs" / "readme.py"))["absolute"]
    text = absolute(text_of("README.md"), "https://example.org/a/b", "v1")
    links = _LINK.findall(_FENCE.sub("", text))
    assert all(link.startswith("https://") for link in links)
    assert "![" in text
    assert "https://example.org/a/b/raw/v1/docs/quickstart.png" in links
    assert "git clone https://example.org/a/b research-rl && cd research-rl" in text
    assert "REPOSITORY" not in text
    with pytest.raises(ValueError, match="https"):
        absolute("", "git@example.org:a/b", "v1")


def broken_links(page: Path) -> Iterator[str]:
    """The links of a page to files or headings that are not in the repository."""
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in headings(target)):
            yield link


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
