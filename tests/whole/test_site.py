"""The site: it holds every page, reads as GitHub does, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles.browser import Browser, find_chromium
from doubles.places import ROOT
from hypothesis import given
from hypothesis import strategies as st

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
_ELEMENT = re.compile(r"<(table|tr|li|ul|ol|pre|h1|h2|h3|h4|blockquote|img|em|strong|code)\b")
_LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"")


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose own tags are passed over."""


Loader.add_multi_constructor("!", lambda loader, tag, node: None)


def named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        values = nav.values() if isinstance(nav, dict) else nav
        yield from (name for value in values for name in named(value))


def test_every_page_stands_in_the_navigation() -> None:
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    pages = list(named(settings["nav"]))
    assert len(pages) == len(set(pages))
    there = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    made = {page for page in pages if page.startswith(("reference/", "project/"))}
    assert set(pages) - made == there, "name each page of docs/ once, under nav in mkdocs.yml"


@pytest.fixture
def flavours(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that writes GitHub's Markdown for Python-Markdown."""
    pytest.importorskip("markdown_it", reason="needs the extra docs: pip install -e '.[docs]'")
    monkeypatch.syspath_prepend(str(DOCS))
    import commonmark

    return commonmark


def both(flavours: Any, text: str) -> tuple[Counter[str], Counter[str]]:
    """The elements that GitHub's reading has, and those of the site's."""
    markdown = pytest.importorskip("markdown")
    pytest.importorskip("pymdownx", reason="needs the extra docs: pip install -e '.[docs]'")
    written = flavours.for_python_markdown(text)
    ours = markdown.markdown(written, extensions=["tables", "pymdownx.superfences", "attr_list"])
    return Counter(_ELEMENT.findall(flavours.parser().render(text))), Counter(
        _ELEMENT.findall(ours)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_has_the_same_elements_on_github_and_in_the_site(page: Path, flavours: Any) -> None:
    github, site = both(flavours, page.read_text(encoding="utf-8"))
    assert github == site


@pytest.mark.parametrize(
    "text",
    [
        "words\n- one\n- two",
        "words\n| a | b |\n|---|---|\n| `x\\|y` | 2 |",
        "1. one\n\n   more\n2. two\n   - inner\n   - inner\n3. three",
        "- one\n  - two\n    - three\n- four",
        "- one\n\n  ```python\n  x = 1\n  ```\n- two",
        "```text\n- no list\n| no | table |\n```",
    ],
)
def test_both_read_the_same(text: str, flavours: Any) -> None:
    github, site = both(flavours, text)
    assert github == site


@given(st.text(alphabet="ab -*1.|`\n#>", max_size=200))
def test_no_text_is_lost(text: str) -> None:
    pytest.importorskip("markdown_it", reason="needs the extra docs: pip install -e '.[docs]'")
    sys.path.insert(0, str(DOCS))
    try:
        from commonmark import for_python_markdown
    finally:
        sys.path.remove(str(DOCS))
    assert for_python_markdown(text).split() == text.split()


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What MkDocs does here beyond its settings."""
    for name in ("mkdocs", "markdown_it"):
        pytest.importorskip(name, reason="needs the extra docs: pip install -e '.[docs]'")
    monkeypatch.syspath_prepend(str(DOCS))
    import hooks

    return hooks


def test_names_of_options_are_kept_in_one_piece(hooks: Any) -> None:
    span = '<span class="word">--model.env.about</span>'
    assert hooks.whole_words("<code>fit --model.env.about x</code>") == f"<code>fit {span} x</code>"
    long = f"<code>--{'x' * 40}</code> a-b <code>a b</code>"
    block = "<pre><span></span><code>fit --top-k 3</code></pre><pre><code>a-b</code></pre>"
    assert hooks.whole_words(long + block) == long + block


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: links, anchors and the navigation are checked."""
    for name in ("mkdocs", "material", "mkdocstrings", "markdown_it"):
        pytest.importorskip(name, reason="needs the extra docs: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    return folder


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    elsewhere = {
        (page.name, target)
        for page in pages
        for target in _LOADED.findall(page.read_text(encoding="utf-8"))
        if target.startswith(("http:", "https:", "//"))
    }
    assert not elsewhere
    styles = "".join(p.read_text(encoding="utf-8") for p in site.rglob("*.css"))
    assert not re.findall(r"@import|url\([\"']?(?:https?:)?//", styles)


def test_its_links_lead_somewhere(site: Path) -> None:
    """Strictness checks the pages' Markdown; this looks at what a reader gets."""
    broken = set()
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\b(?:href|src)=\"([^\"#?]+)", text):
            if not re.match(r"[a-z]+:|//", target) and page.name != "404.html":
                found = (page.parent / target).resolve()
                if not (found.is_file() or (found / "index.html").is_file()):
                    broken.add((page.relative_to(site).as_posix(), target))
    assert not broken


def test_the_reference_has_what_doors_export(site: Path) -> None:
    page = (site / "reference/envs.html").read_text(encoding="utf-8")
    assert 'id="research_rl.envs.ReSearchEnv"' in page
    assert "max_searches" in page
    commands = (site / "reference/commands.html").read_text(encoding="utf-8")
    assert commands.count("usage: ") > 15
    configs = (site / "reference/configs.html").read_text(encoding="utf-8")
    shipped = {p.stem for p in (ROOT / "configs").rglob("*.yaml")}
    assert all(f"{name}</code>" in configs for name in shipped)


def test_search_works_in_pages_from_disk(site: Path, tmp_path: Path) -> None:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    found = "[...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
    with Browser(executable, tmp_path) as page:
        page.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        page.open(site / "guides/first-run.html")
        page.press("/")
        page.call("Input.insertText", text="flight recorder")
        deadline = time.monotonic() + 60
        while not page.value(found) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert any("recovery.html" in link for link in page.value(found))
        assert page.errors == []
