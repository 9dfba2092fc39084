"""The page of ``research ask --web`` in a real browser: asked, watched, stopped, by keys alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from doubles.browser import Browser, find_chromium
from doubles.sample_rollouts import HOSTILE
from doubles.served_model import Scripted
from doubles.taught import environment

from research_rl.agents import SamplingParams, ServedReSearchAgent
from research_rl.envs import Passage, Retriever
from research_rl.envs.protocols import RESEARCH
from research_rl.trainers.agent import (
    AgentSettings,
    Asker,
    BackgroundAgentServer,
    QuestionQueue,
    agent_page,
)


class Few(Retriever):
    """Finds the passages that a test names, whatever is searched for.

    Args:
        contents: of the passages.
    """

    def __init__(self, *contents: str) -> None:
        self.contents = contents

    def search(self, queries: Any, k: int) -> list[list[Passage]]:
        """See Retriever.search."""
        found = [Passage(str(n), text, 1.0) for n, text in enumerate(self.contents[:k])]
        return [found for _ in queries]


Say = Callable[[str], str]


def two_turns(shown: str) -> str:
    if "<result>" in shown:
        return RESEARCH.answer("Domlor", "That is it .")
    return RESEARCH.search("boss of Bakset", thought="I need the boss .")


class Warns(Asker):
    """Has a note for some questions, as of a model that cannot read their words."""

    def notes(self, question: str) -> list[str]:
        """See Asker.notes."""
        return [f'It cannot read "{question}" <b>.'] if "Alien" in question else []


def serve(say: Say, *contents: str, key: str | None = None) -> BackgroundAgentServer:
    env = environment(Few(*contents), top_k=5)
    params = SamplingParams(2000, temperature=0.0)
    agent = ServedReSearchAgent(Scripted(lambda one: say(str(one))), env, params)
    settings = AgentSettings(api_key=key, page=agent_page(key is not None))
    return BackgroundAgentServer(QuestionQueue(Warns(agent)), settings)


PASSAGES = ("Bakset\nthe boss of Bakset is Domlor .", "Rome\na city by a river")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with Browser(executable, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def server() -> Iterator[BackgroundAgentServer]:
    with serve(two_turns, *PASSAGES) as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: BackgroundAgentServer) -> Iterator[Browser]:
    browser.look(1280, dark=False)
    browser.visit(server.url)
    yield browser
    assert browser.errors == []


def ask(page: Browser, question: str, end: str = ".final") -> None:
    """Type a question and press Enter; wait for what shows its end."""
    page.value("document.getElementById('question').focus()")
    page.call("Input.insertText", text=question)
    press_enter(page)
    page.wait(f"document.querySelector({json.dumps(end)}) !== null")


def press_enter(page: Browser) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent",
            **{"type": kind, "key": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
        )


def visible(page: Browser, selector: str) -> list[str]:
    texts = page.value(
        f"[...document.querySelectorAll({json.dumps(selector)})]"
        ".filter(e => e.checkVisibility()).map(e => e.innerText)"
    )
    assert isinstance(texts, list)
    return texts


def test_a_question_is_asked_and_its_way_folds(page: Browser) -> None:
    assert page.value("document.activeElement.id") == "question"
    ask(page, "Who leads Bakset?")
    assert page.text("article h2") == "Who leads Bakset?"
    assert page.text(".final .said") == "Domlor"
    assert page.text("#status") == "Answered: Domlor"
    assert page.text(".way > summary") == "The way there: 1 search, 2 passages, with the thoughts"
    assert visible(page, ".part") == []
    assert page.text("article > .passages .name") == "Bakset"
    assert page.text("article > .passages mark") == "Domlor"
    page.click(".way > summary")
    assert len(visible(page, ".part")) == 5, "two thoughts, search, result, answer"
    assert visible(page, ".part.search .said") == ["boss of Bakset"]
    assert visible(page, ".part.think .said") == [], "thoughts are folded"
    assert visible(page, ".part.think summary") == ["I need the boss .", "That is it ."]
    assert visible(page, ".part.result .name") == ["Bakset", "Rome"]
    assert visible(page, ".part.result .text") == []
    page.click(".part.think summary")
    assert visible(page, ".part.think .said") == ["I need the boss ."]
    page.click(".part.result li:nth-child(2) summary")
    assert visible(page, ".part.result .text") == ["a city by a river"]


def test_a_note_stands_before_the_answer(page: Browser) -> None:
    ask(page, "Who leads Bakset?")
    assert visible(page, ".note") == []
    page.value("document.getElementById('question').value = ''")
    ask(page, "Who leads Alien?", end="article:nth-child(1) .final")
    assert visible(page, ".note") == ['It cannot read "Who leads Alien?" <b>.']
    assert page.value(
        "document.querySelector('.note').getBoundingClientRect().bottom"
        " <= document.querySelector('.final').getBoundingClientRect().top"
    )


def test_no_answer_is_said_once(browser: Browser) -> None:
    with serve(lambda shown: "<think> hm . </think> what", *PASSAGES) as server:
        browser.look(1280, dark=False)
        browser.visit(server.url)
        ask(browser, "Who leads Bakset?")
        assert browser.text(".final .kind").lower() == "no answer"
        assert browser.text(".final .said") == "The model ended without an answer."
        assert browser.text("#status") == "No answer."
        assert browser.text(".way > summary") == "The way there: no search, with the thoughts"
    with serve(lambda shown: "what", *PASSAGES) as server:
        browser.visit(server.url)
        ask(browser, "Who leads Bakset?")
        assert browser.text(".way > summary") == "The way there: no search"
    assert browser.errors == []


def test_keys_alone_are_enough(page: Browser) -> None:
    ask(page, "Who leads Bakset?")
    names = []
    for _ in range(5):
        page.press("Tab")
        names.append(page.value("document.activeElement.innerText.split('\\n')[0].slice(0, 13)"))
    assert names[:3] == ["Ask", "The way there", "Bakset"]
    page.value("document.querySelector('.way > summary').focus()")
    press_enter(page)
    assert visible(page, ".part.search .said") == ["boss of Bakset"]
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_every_control_has_a_name(page: Browser) -> None:
    ask(page, "Who leads Bakset?")
    page.click(".way > summary")
    controls = ("button", "textbox", "DisclosureTriangle", "status", "main", "heading")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    found = {role: [] for role in controls}
    for node in nodes:
        if (role := node.get("role", {}).get("value")) in found and not node["ignored"]:
            found[role].append(node.get("name", {}).get("value", ""))
    assert found["textbox"] == ["Question"]
    assert found["button"][0] == "Ask"
    assert len(found["DisclosureTriangle"]) >= 4
    assert all(found["DisclosureTriangle"])
    assert all(found["heading"])
    assert len(found["main"]) == len(found["status"]) == 1


def test_hostile_texts_are_only_text(browser: Browser) -> None:
    marks = "<img src=x onerror=owned=1>"

    def say(shown: str) -> str:
        if "<result>" in shown:
            return f"<think> {HOSTILE} </think><answer> \\boxed{{{marks}}} </answer>"
        return f"<think> {HOSTILE} </think><search> {HOSTILE} </search>"

    with serve(say, f"{marks}\n{HOSTILE}", f"</script>{marks}\n{marks}") as server:
        browser.visit(server.url)
        ask(browser, HOSTILE.replace("\ud800", ""))
        browser.click(".way > summary")
        assert browser.value("window.owned") is None
        assert browser.value("document.images.length") == 0
        assert browser.value("document.scripts.length") == 1
        assert browser.text(".final .said") == marks
        assert visible(browser, ".part.result .name") == [marks, f"</script>{marks}"]
    assert browser.errors == []


def test_the_policy_of_the_page_lets_nothing_else_run(page: Browser) -> None:
    page.value("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=owned=1>')")
    page.value(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'owned=1'}))"
    )
    assert page.value("window.owned") is None
    assert page.errors
    page.errors.clear()


def test_what_comes_is_seen_at_once_and_can_be_stopped(browser: Browser) -> None:
    go_on, asked = threading.Event(), []

    def say(shown: str) -> str:
        asked.append(shown)
        if "<result>" in shown:
            assert go_on.wait(60)
        return two_turns(shown)

    with serve(say, *PASSAGES) as server:
        browser.visit(server.url)
        ask(browser, "Who leads Bakset?", end=".part.result")
        assert browser.text("#go") == "Stop"
        assert visible(browser, ".part.search .said") == ["boss of Bakset"]
        assert browser.text("#status") == "Reading what was found"
        browser.press("Escape")
        browser.wait("document.querySelector('.final.none') !== null")
        assert browser.text(".final .said") == "stopped"
        assert browser.text("#go") == "Ask"
        go_on.set()
        browser.value("document.getElementById('question').value = ''")
        ask(browser, "Again?", end="article:nth-child(1) .final .said")
        assert visible(browser, "article h2") == ["Again?", "Who leads Bakset?"]
        assert browser.text(".final .said") == "Domlor"
        assert len(asked) == 4
    browser.value("document.getElementById('question').value = ''")
    ask(browser, "And now?", end="article:nth-child(1) .final.none")
    assert "does not answer" in browser.text(".final .said")
    browser.errors.clear()  # the browser's own word for a server that is gone


def test_the_page_asks_for_the_key(browser: Browser) -> None:
    with serve(two_turns, *PASSAGES, key="k") as server:
        browser.visit(server.url)
        ask(browser, "Who leads Bakset?")
        assert "Authorization: Bearer KEY" in browser.text(".final.none .said")
        assert browser.value("document.activeElement.id") == "key"
        browser.call("Input.insertText", text="k")
        browser.click("#go")
        browser.wait("document.querySelector('.final:not(.none)') !== null")
        assert browser.text(".final .said") == "Domlor"
    browser.errors.clear()  # the browser's own word for status 401


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 400, 320])
def test_it_fits_and_can_be_read(width: int, dark: bool, browser: Browser, tmp_path: Path) -> None:
    long = "Verylongtitle" * 12 + "\n" + "word " * 80 + "x" * 300
    with serve(two_turns, long, *PASSAGES) as server:
        browser.look(width, dark)
        browser.visit(server.url)
        ask(browser, "Who leads Bakset and how long can a question be ?" + "y" * 200)
        browser.click(".way > summary")
        assert browser.value("document.documentElement.scrollWidth") <= width
        page = browser.value("getComputedStyle(document.body).backgroundColor")
        assert (page == "rgb(20, 23, 26)") is dark
        sizes = browser.value(
            "[...document.querySelectorAll('#go, #question')]"
            ".map(e => e.getBoundingClientRect().height)"
        )
        assert min(sizes) >= 40, "to be hit by a finger"
    assert browser.errors == []
