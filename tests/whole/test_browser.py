"""The page of rollouts in a real browser: what a person sees after a click and a key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.browser import Browser, find_chromium
from doubles.sample_rollouts import HOSTILE, rollout, rollouts

from research_rl.agents.types import Rollout
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
