"""The page of rollouts in a real browser: what a person sees after a click and a key."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from doubles.browser import Browser, find_chromium
from doubles.run_folders import dead, healthy, rollout_row, strange
from doubles.sample_rollouts import HOSTILE, rollout, rollouts

from research_rl.agents.types import Rollout
from research_rl.trainers.overview.compare import comparison_of, comparison_page
from research_rl.trainers.overview.folder import RunFolder
from research_rl.trainers.overview.page import write_run_page
from research_rl.trainers.viewer.follow import questions_html
from research_rl.trainers.viewer.page import rollouts_html

ALL = rollouts()  # question 0: right, wrong, format error; question 1: right, wrong


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with Browser(executable, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Browser]:
    show(browser, tmp_path, ALL)
    yield browser
    assert browser.errors == []


def decode(ids: list[int]) -> str:
    return "".join(f"<{i}>" for i in ids)


def show(browser: Browser, folder: Path, some: list[Rollout], fragment: str = "") -> None:
    advantages = [r.reward.value - 0.5 for r in some]
    path = folder / "page.html"
    html = rollouts_html(some, advantages, "Rollouts", step=7, decode=decode)
    path.write_text(html, encoding="utf-8")
    browser.open(path, fragment)


def visible_chips(page: Browser) -> int:
    count = page.value(
        "[...document.querySelectorAll('.chip')].filter(c => c.checkVisibility()).length"
    )
    assert isinstance(count, int)
    return count


def test_first_rollout_is_shown(page: Browser) -> None:
    assert page.text("h1") == "Rollouts · step 7"
    assert page.text("h2") == ALL[0].question.text
    assert [page.text(f".{kind} .said") for kind in ("think", "search")] == [
        "I need the boss of Bakset .",
        "the boss of Bakset",
    ]
    assert page.text(".boxed") == "Domlor"
    assert page.text(".badges").split("\n") == [
        "right",
        "reward 1.00",
        "F1 1.00",
        "advantage +0.50",
        "1 search",
        "finished answer",
        "tokens 5 written, 2 given",
    ]
    assert page.text(".gold").startswith("Gold answer Domlor")
    assert "supporting" in page.text(".passage .name + .flag")


def test_filters(page: Browser) -> None:
    assert page.text("#filters").split() == ["All", "5", "Right", "2", "Wrong", "2", "Format", "1"]
    for name, chips in {"right": 2, "wrong": 2, "format": 1, "all": 5}.items():
        page.click(f"[data-filter={name}]")
        assert visible_chips(page) == chips
    page.click("[data-filter=format]")
    assert page.text(".badges").split("\n")[0] == "format error"
    assert "<answer> is not closed" in page.text(".badges")
    assert page.text(".place").startswith("1 of 1")


def test_a_click_selects(page: Browser) -> None:
    page.click("#questions li:nth-child(2) .chip:nth-child(2)")
    assert page.text("h2") == ALL[4].question.text
    assert page.text(".badges").split("\n")[0] == "wrong"
    assert page.value("location.hash") == "#5"
    page.click("#previous")
    assert page.text(".place").startswith("4 of 5")


def test_keys(page: Browser) -> None:
    page.press("ArrowRight")
    assert page.text(".place").startswith("2 of 5")
    page.press("ArrowDown")
    assert page.text(".place").startswith("4 of 5")
    page.press("ArrowUp")
    page.press("ArrowLeft")
    assert page.text(".place").startswith("1 of 5")
    page.press("3")
    assert visible_chips(page) == 2
    page.press("/")
    page.call("Input.insertText", text="no such question")
    assert visible_chips(page) == 0
    assert "Nothing to show" in page.text("main")


def test_tokens_tell_who_wrote_them(page: Browser) -> None:
    page.press("t")
    assert page.text(".tokens") == decode(ALL[0].sequence.response_ids)
    written = page.value("document.querySelectorAll('.tokens .written').length")
    assert written == sum(ALL[0].sequence.loss_mask)


def colour(page: Browser, selector: str) -> list[int]:
    text = page.value(f"getComputedStyle(document.querySelector('{selector}')).backgroundColor")
    return [int(float(part)) for part in re.findall(r"[\d.]+", text)[:3]]


def test_only_a_right_answer_is_green(page: Browser) -> None:
    red, green, blue = colour(page, ".boxed")
    assert green > red
    assert green > blue
    page.press("ArrowRight")
    assert page.text(".badges li") == "wrong"
    assert "wrong" in page.text(".part.answer")
    red, green, blue = colour(page, ".boxed")
    assert green <= max(red, blue)


def test_text_is_found_in_queries_passages_and_answers(page: Browser) -> None:
    for words, chips in {"boss of veros": 5, "it is veros": 2, "no such": 0, "": 5}.items():
        page.value("(() => { const w = byId('words'); w.value = ''; w.focus(); })()")
        page.call("Input.insertText", text=words or " ")
        assert visible_chips(page) == chips, words
    page.value("(() => { const w = byId('words'); w.value = ''; w.focus(); })()")
    page.call("Input.insertText", text="Tamin")
    assert page.text(".part .hit") == "Tamin"


def order(page: Browser, place: int) -> list[str]:
    page.value(
        f"(() => {{ const s = byId('order'); s.value = '{place}';"
        "s.dispatchEvent(new Event('change')); })()"
    )
    chips = page.value("[...document.querySelectorAll('.chip')].map(c => c.textContent)")
    return list(chips)


def test_rollouts_are_sorted(page: Browser) -> None:
    assert order(page, 1) == ["1.00", "0.10", "1.00", "0.10", "0.00"], "best question first"
    assert order(page, 2) == ["0.00", "0.10", "1.00", "0.10", "1.00"]
    assert order(page, 0) == ["1.00", "0.10", "0.00", "1.00", "0.10"]


def test_long_thoughts_fold(browser: Browser, tmp_path: Path) -> None:
    long = replace(ALL[0], turns=[f"<think> {'well ' * 300}</think> <search> a </search>", "b"])
    show(browser, tmp_path, [long])
    assert browser.value("document.querySelector('details.fold').open") is False
    assert "300 words" in browser.text("details.fold summary")
    browser.press("f")
    assert browser.value("document.querySelector('details.fold').open") is True
    assert browser.errors == []


def test_the_same_question_at_two_steps(browser: Browser, tmp_path: Path) -> None:
    rows = [rollout_row(step, n, step + n > 5) for step in (0, 5, 9) for n in range(3)]
    path = tmp_path / "questions.html"
    path.write_text(questions_html(json.dumps(row) for row in rows), encoding="utf-8")
    browser.open(path)
    deadline = time.monotonic() + 20
    while not browser.value("document.documentElement.dataset.ready"):
        assert time.monotonic() < deadline, "the page does not get ready"
        time.sleep(0.02)
    heads = "[...document.querySelectorAll('.side h3')].map(h => h.textContent)"
    assert browser.value(heads) == ["step 0", "step 9"]
    assert browser.text("#filters").split() == [
        "All",
        "3",
        "Learned",
        "3",
        "Lost",
        "0",
        "Same",
        "0",
    ]
    browser.press("ArrowLeft")
    assert browser.value(heads) == ["step 0", "step 5"]
    browser.press("2")
    listed = "[...document.querySelectorAll('#questions button')].map(b => b.innerText.trim())"
    assert browser.value(listed) == ["Who owns house 1 ?", "Who owns house 2 ?"]
    assert browser.errors == []


def test_one_step_stands_alone_and_the_page_says_so(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "questions.html"
    rows = [json.dumps(rollout_row(0, n, n > 1)) for n in range(3)]
    path.write_text(questions_html(rows), encoding="utf-8")
    browser.open(path)
    browser.wait("document.documentElement.dataset.ready")
    heads = "[...document.querySelectorAll('.side h3')].map(h => h.textContent)"
    assert browser.value(heads) == ["step 0"]
    assert "asked at one step only, step 0" in browser.text("main")
    assert browser.value("byId('left').checkVisibility()") is False
    browser.press("2")
    assert browser.value("document.querySelectorAll('#questions li').length") == 3
    assert browser.errors == []


SIZES = [(1400, "light"), (1400, "dark"), (400, "light"), (400, "dark")]


def test_nothing_is_cut_on_a_wide_screen_or_a_phone(browser: Browser, tmp_path: Path) -> None:
    """Pages fit the screen; what is wider, a table, scrolls by itself and with the keyboard."""
    runs = [healthy(tmp_path / "healthy"), dead(tmp_path / "dead"), strange(tmp_path / "strange")]
    pages = [write_run_page(run) for run in runs]
    read = [RunFolder.read(run) for run in runs]
    pages.append(tmp_path / "comparison.html")
    pages[-1].write_text(comparison_page(comparison_of(read, 200), read, pages[-1]), "utf-8")
    cut = (
        "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right >"
        " innerWidth + 1 && !e.closest('.wide, pre, details:not([open])')).map(e => e.outerHTML)"
    )
    still = "[...document.querySelectorAll('.wide')].filter(e => e.tabIndex < 0).length"
    try:
        for width, scheme in SIZES:
            metrics = {"width": width, "height": 800, "deviceScaleFactor": 1}
            browser.call("Emulation.setDeviceMetricsOverride", **metrics, mobile=width < 500)
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.call("Emulation.setEmulatedMedia", features=[feature])
            for page in pages:
                browser.open(page)
                assert browser.value(cut) == [], (page.name, width)
                assert browser.value("document.documentElement.scrollWidth") <= width
                assert browser.value(still) == 0
                assert browser.value("window.owned") is None
                drawn = browser.value("[...document.images].every(i => i.naturalWidth > 100)")
                assert drawn is True, "pictures of the page itself are shown"
        assert browser.errors == []
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
        browser.call("Emulation.setEmulatedMedia", features=[])


def test_what_scrolls_shows_that_it_does(browser: Browser, tmp_path: Path) -> None:
    """On a phone a table that is wider than it has a bar and a shadow; its rows stay low."""
    runs = [healthy(tmp_path / name, steps=3) for name in ("first-run", "second-run")]
    read = [RunFolder.read(run) for run in runs]
    page = tmp_path / "comparison.html"
    page.write_text(comparison_page(comparison_of(read, 200), read, page), "utf-8")
    try:
        browser.look(400, dark=False)
        browser.open(page)
        paired = "document.querySelector('[aria-label=\"Paired tests\"]')"
        assert browser.value(f"{paired}.scrollWidth > {paired}.clientWidth")
        assert "gradient" in browser.value(f"getComputedStyle({paired}).backgroundImage")
        bar = f"getComputedStyle({paired}, '::-webkit-scrollbar').height"
        assert browser.value(bar) == "8px"
        rows = f"[...{paired}.querySelectorAll('tbody tr')].map(r => r.offsetHeight)"
        assert max(browser.value(rows)) < 60, "two lines at most"
        browser.open(write_run_page(runs[0]))
        assert "gradient" in browser.value(
            "getComputedStyle(document.querySelector('pre')).backgroundImage"
        )
        hops = "getComputedStyle(document.querySelector('td.text small')).whiteSpace"
        assert browser.value(hops) == "nowrap"
        assert browser.errors == []
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
        browser.call("Emulation.setEmulatedMedia", features=[])


def test_a_fragment_names_a_rollout(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, ALL, "#3")
    assert browser.text(".place").startswith("3 of 5")
    show(browser, tmp_path, ALL, "#99")
    assert browser.text(".place").startswith("1 of 5")
    assert browser.errors == []


def test_hostile_text_is_only_text(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, [rollout("right", question=HOSTILE, passage=HOSTILE)])
    assert browser.value("window.owned") is None
    assert browser.value("document.images.length") == 0
    shown = browser.value("document.querySelector('h2').textContent")
    assert shown.replace("\ufffd", "\ud800") == HOSTILE
    assert browser.errors == []


def test_nothing_to_show(browser: Browser, tmp_path: Path) -> None:
    show(browser, tmp_path, [])
    assert "There are no rollouts" in browser.text("main")
    assert browser.errors == []


def test_five_thousand_rollouts_stay_usable(browser: Browser, tmp_path: Path) -> None:
    many = [rollout("right", question=f"Who is number {i // 5} ?") for i in range(5000)]
    show(browser, tmp_path, many)
    assert browser.value("document.querySelectorAll('.part').length") < 10, "one is rendered"
    begin = time.monotonic()
    for _ in range(20):
        browser.press("ArrowRight")
    browser.press("2")
    assert browser.text(".place").startswith("21 of 5,000")
    assert time.monotonic() - begin < 120  # seconds, of a browser that would hang
