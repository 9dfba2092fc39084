"""What rows amount to: summary, card, figures, page; and the file of rows itself."""

from __future__ import annotations

import base64
import json
import re
import time
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from doubles.browser import Browser, find_chromium
from doubles.evaluated import row
from doubles.sample_rollouts import HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st

from research_rl.trainers.callbacks.svg import DARK
from research_rl.trainers.evaluate.measures.published import beside, check_system, published
from research_rl.trainers.evaluate.measures.rows import Cell, Key, Row, RowFile
from research_rl.trainers.evaluate.measures.statistics import Interval
from research_rl.trainers.evaluate.report.card import (
    card_csv,
    card_markdown,
    interval_text,
    percent,
)
from research_rl.trainers.evaluate.report.charts import _OTHERS, accuracy_against_searches, figure1
from research_rl.trainers.evaluate.report.page import page_data, verdict_of, write_page
from research_rl.trainers.evaluate.report.summary import Summary, summarise
from research_rl.trainers.evaluate.settings import setting_differences

OURS, OTHER = Cell("houses", "tiny", "ReSearch"), Cell("houses", "tiny", "Guess")


def summary_of(rows: list[Row], asked: int | None = None, **options: Any) -> Summary:
    cells = dict.fromkeys(Cell(r["dataset"], r["model"], r["method"]) for r in rows)
    counts = {cell: asked or len(rows) // len(cells) for cell in cells}
    return summarise(rows, counts, resamples=200, **options)


def pair(count: int = 20) -> list[Row]:
    """ReSearch right on all but the first, Guess on every fourth."""
    ours = [row(i, i > 0, hops=1 + i % 2) for i in range(count)]
    return ours + [row(i, i % 4 == 0, "Guess", hops=1 + i % 2) for i in range(count)]


def test_the_published_table() -> None:
    rows = published()
    assert len(rows) == 12 * 4
    best = beside("ReSearch-Qwen-32B-Instruct", "ReSearch", "hotpot_qa dev")
    assert best is not None
    assert (best.em, best.judge) == (46.73, 67.70)
    naive = beside("ReSearch-Qwen-7B", "IRCoT", "2wiki")
    assert naive is not None
    assert (naive.size, naive.em, naive.judge) == ("7B", 21.57, 30.65)
    assert beside("ReSearch-Qwen-7B", "ReSearch", "nq") is None
    with pytest.raises(ValueError, match="beside must be one of ReSearch-Qwen-32B"):
        check_system("GPT-4")


def test_summary_counts_and_compares() -> None:
    rows = pair()
    rows[0] = {**rows[0], "error": "timed out", "em": None, "f1": None}
    rows[1]["format_error"], rows[2]["format_error"] = "no <think>", "tag: inside <think>"
    found = summary_of(rows, asked=25, closed_book="Guess")
    ours = found.cells[OURS]
    assert (ours.asked, ours.answered, ours.errors) == (25, 19, 1)
    assert ours.measures["em"].mean == 1.0
    assert ours.format_errors == {"no <think>": 1, "tag": 1}
    assert {hops: x.n for hops, x in ours.by_hops.items()} == {1: 9, 2: 10}
    em = next(c for c in found.comparisons if c.measure == "em")
    assert (em.paired.n, em.paired.unpaired) == (19, 1)
    assert em.paired.difference == pytest.approx(1 - 4 / 19)
    assert em.corrected_p is not None
    assert em.paired.p_value is not None
    assert em.corrected_p >= em.paired.p_value
    known = found.knowledge[0]
    assert (known.right, known.answered_before, known.known_before) == (19, 19, 4)


def test_what_the_closed_book_method_failed_at_is_not_unknown() -> None:
    rows = pair()
    for number in (20 + 2, 20 + 4):  # of the closed-book method; the second would have been right
        rows[number] = {**rows[number], "error": "timed out", "em": None, "f1": None}
    found = summary_of(rows, closed_book="Guess")
    (known,) = found.knowledge
    assert (known.right, known.answered_before, known.known_before) == (19, 17, 3)
    assert "| 19 | 3 (17.6 % of 17 answered) |" in card_markdown(found)


def test_the_reference_on_its_own_model_is_compared_with() -> None:
    rows = [
        row(i, True, m, model=model)
        for model in ("a", "b")
        for m in ("ReSearch", "Guess")
        for i in range(3)
    ]
    rows += [row(i, True, "Other", model="c") for i in range(3)]
    found = {tuple(c.other): tuple(c.reference) for c in summary_of(rows).comparisons}
    assert found == {
        ("Guess", "a"): ("ReSearch", "a"),
        ("Guess", "b"): ("ReSearch", "b"),
        ("Other", "c"): ("ReSearch", "a"),
    }


def test_card_says_everything() -> None:
    rows = [{**r, "dataset": "HotpotQA"} for r in pair()]
    judged = {"j": {"verdict": True, "error": None}}
    rows = [{**r, "judge": judged} for r in rows]
    found = summary_of(rows, closed_book="Guess", judges=["j"])
    card = card_markdown(found, "A|B", "read me", "ReSearch-Qwen-7B", {"Guess": "NaiveRAG"})
    for said in (
        "# A|B\n\nread me\n\n40 of 40 answers are in.",
        "| HotpotQA | ReSearch | 20 | 95.0 [",
        "| HotpotQA | ReSearch | 95.0 [85.0, 100.0] | 40.57 | +54.4 | 60.26 |",
        "| 31.90 | -6.9 | 49.59 |",
        "## EM by hops",
        "| HotpotQA | ReSearch | j | 100.0 | 20 | 0 |",
        "| EM and j | 60.0 |",
        "| HotpotQA | 25.0 [",
        "answer 20",
    ):
        assert said in card, said
    lines = card_csv(found).splitlines()
    assert "HotpotQA,tiny,ReSearch,em,20,0.95,0.85,1" in lines
    assert "HotpotQA,tiny,Guess,errors,20,0,," in lines


def test_figures_in_words() -> None:
    assert percent(Interval(0.4057, 0.38, 0.431, 9)) == "40.6 [38.0, 43.1]"
    assert interval_text(Interval(123.4, 120.2, 130.0, 9)) == "123 [120, 130]"
    assert percent(None) == interval_text(Interval(None, None, None, 0)) == "–"


def test_pictures_of_any_grid(tmp_path: Path) -> None:
    rows = [
        row(i, True, f"m{m}", dataset=f"d{d}") for d in range(5) for m in range(6) for i in (1, 2)
    ]
    for name, found in {"many": summary_of(rows), "none": summarise([], {OURS: 5})}.items():
        for draw in (figure1, accuracy_against_searches):
            png = draw(found, tmp_path / f"{name}.png").read_bytes()
            assert png.startswith(b"\x89PNG")


def test_differences_are_named() -> None:
    old, new = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": "x"}
    assert list(setting_differences(old, new)) == ["a.c was 2, is 3", 'd was null, is "x"']


TEXT = st.text(st.characters(), max_size=40)


@given(st.lists(st.tuples(st.integers(0, 5), TEXT), max_size=8), st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_a_file_of_rows_survives_a_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[int, str]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file = RowFile(path)
    for place, text in written:
        file.append([row(place, True, prediction=text)])
    file.close()
    data = path.read_bytes() if path.is_file() else b""
    path.write_bytes(data[: max(0, len(data) - cut)])
    again = RowFile(path)
    whole = path.read_bytes().count(b"\n")
    kept = {Key("houses", "tiny", "ReSearch", f"q{n}"): text for n, text in written[:whole]}
    assert {key: r["prediction"] for key, r in again.rows.items()} == kept
    again.append([row(9, True)])
    again.close()
    assert len(RowFile(path).rows) == len(kept) + 1


def test_hops_of_older_rows_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    written: list[Any] = ["2", 3, "ask me"]
    path.write_text("".join(json.dumps(row(n, True, hops=h)) + "\n" for n, h in enumerate(written)))
    rows = list(RowFile(path).rows.values())
    assert [one["hops"] for one in rows] == [2, 3, None]
    (cell,) = summary_of(rows).cells.values()
    assert sorted(cell.by_hops) == [2, 3]


def test_a_spoilt_line_is_named_and_nothing_changed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = RowFile(path)
    file.append([row(1, True)])
    file.close()
    data = b'{"half": 1}\n' + path.read_bytes() + b'{"torn'
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"rows.jsonl:1: must be a row"):
        RowFile(path)
    assert path.read_bytes() == data


def unpack(path: Path) -> Any:
    found = re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', path.read_text("utf-8"))
    assert found is not None
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


def test_the_page_holds_every_answer_of_the_first_questions(tmp_path: Path) -> None:
    rows = pair()
    page = write_page(tmp_path / "p.html", rows, summary_of(rows), "T", "N", num_questions=15)
    data = unpack(page)
    assert [q["id"] for q in data["questions"]] == [f"q{i}" for i in range(15)]
    assert data["note"] == "5 more are in rows.jsonl"
    assert data["systems"] == ["ReSearch", "Guess"]
    assert data["questions"][0]["r"]["0"]["v"] == "wrong"
    assert data["questions"][0]["r"]["1"]["v"] == "right"
    assert data["questions"][2]["r"]["0"]["s"] == [
        ["think", "hm"],
        ["search", "Who owns house 2?"],
        ["result", "Owner 2"],
        ["answer", "\\boxed{Owner 2}"],
    ]
    text = page.read_text("utf-8")
    assert not re.search(r'(?:src|href)="(?!data:)', text), "it loads nothing"


def results_of(tmp_path: Path, rows: list[Row]) -> str:
    page = write_page(tmp_path / "p.html", rows, summary_of(rows)).read_text("utf-8")
    return " ".join(page.partition('<ul class="results">')[2].partition("</ul>")[0].split())


def test_the_result_is_a_sentence(tmp_path: Path) -> None:
    said = results_of(tmp_path, pair())
    assert "houses: ReSearch answers 95.0 % of the questions right (EM), 70.0 points more" in said
    assert "more than the best other method, Guess (95 % interval +" in said
    alike = [row(i, i > 0, method) for method in ("ReSearch", "Guess") for i in range(8)]
    assert results_of(tmp_path, alike).endswith("as many as the best other method, Guess.</li>")
    worse = [row(i, m == "Guess", m) for m in ("ReSearch", "Guess") for i in range(8)]
    assert "100.0 points fewer than the best other method, Guess" in results_of(tmp_path, worse)


def test_the_blues_of_methods_are_told_apart_on_both_papers() -> None:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.04 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.05 + sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    blues = _OTHERS[1:5]
    for shown in (blues, [DARK[blue] for blue in blues]):
        levels = [light(blue) for blue in shown]
        assert all(a / b > 1.3 for a, b in pairwise(levels)), shown
    assert light(DARK[blues[-1]]) / light("#14171a") > 3, "seen on a dark page"


def test_a_picture_of_one_data_set_is_not_blown_up(tmp_path: Path) -> None:
    page = write_page(tmp_path / "p.html", pair(), summary_of(pair()), "T", "N")
    most = [int(found) for found in re.findall(r"--most: (\d+)px", page.read_text("utf-8"))]
    assert len(most) == 2
    assert max(most) < 650, "CSS pixels"


def test_verdicts() -> None:
    assert verdict_of(row(1, True)) == "right"
    assert verdict_of(row(1, False)) == "wrong"
    assert verdict_of(row(1, True, format_error="x")) == "format"
    assert verdict_of(row(1, True, format_error="x", error="down")) == "error"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with Browser(executable, tmp_path_factory.mktemp("profile")) as started:
        yield started


def show(browser: Browser, folder: Path, rows: list[Row], fragment: str = "") -> Browser:
    found = summary_of(rows)
    figure = figure1(found, folder / "figure1.png")
    browser.open(
        write_page(folder / "p.html", rows, found, figures=[figure], num_questions=5000), fragment
    )
    deadline = time.monotonic() + 20
    while not browser.value("document.documentElement.dataset.ready"):
        assert time.monotonic() < deadline, "the page does not get ready"
        time.sleep(0.02)
    return browser


def choose(page: Browser, name: str, value: int) -> None:
    page.value(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = '{value}';"
        "s.dispatchEvent(new Event('change')); })()"
    )


def listed(page: Browser) -> str:
    return page.text("#count").split(" ")[0]


def test_reading_and_comparing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    rows = pair()
    rows[3] = {**rows[3], "format_error": "no <think>"}
    rows[4] = {**rows[4], "error": "timed out"}
    rows += [row(i, True, dataset="second") for i in range(3)]
    page = show(browser, tmp_path, rows)
    assert "ReSearch" in page.text("#scores")
    assert page.value("document.querySelector('#overview img').naturalWidth") > 300
    page.click("#tab-rollouts")
    assert page.text("h2") == "Who owns house 0?"
    assert page.text(".badges li") == "wrong"
    assert listed(page) == "23"
    choose(page, "dataset", 0)
    for name, count in {"right": "17", "wrong": "1", "format": "1", "error": "1"}.items():
        page.click(f"[data-filter={name}]")
        assert listed(page) == count
    assert "timed out" in page.text(".part.problem")
    page.click("[data-filter=all]")
    choose(page, "right", 1)
    assert page.value("document.querySelectorAll('.side').length") == 2
    page.click("[data-filter=differ]")
    assert listed(page) == "16"
    assert page.text(".side:nth-child(2) h3") == "Guess"
    page.press("ArrowDown")
    assert page.text(".at") == "5 of 16", "what was read, an error, was the fourth of these"
    page.click("#words")
    page.call("Input.insertText", text="house 7")
    assert (listed(page), page.text("h2")) == ("1", "Who owns house 7?")
    assert page.text("#filters [data-filter=differ]").split() == ["Differ", "1"]
    assert page.errors == []


def test_a_fragment_opens_an_answer(browser: Browser, tmp_path: Path) -> None:
    page = show(browser, tmp_path, pair(), "#3")
    assert page.text("h2") == "Who owns house 2?"
    assert page.errors == []


def test_hostile_text_stays_text(browser: Browser, tmp_path: Path) -> None:
    steps = [{"role": role, "text": HOSTILE} for role in ("model", "environment")]
    hostile = {"prediction": HOSTILE, "question": HOSTILE, "answers": [HOSTILE], "steps": steps}
    rows = [row(1, False, HOSTILE, dataset=HOSTILE, queries=[HOSTILE], **hostile)]
    rows[0]["passages"] = [[{"id": HOSTILE, "title": HOSTILE}]]
    page = show(browser, tmp_path, rows)
    page.click("#tab-rollouts")
    assert page.value("window.owned") is None
    assert page.value("document.querySelectorAll('#rollout img, #rollout script').length") == 0
    shown = page.value("document.querySelector('h2').textContent")
    assert shown.replace("\ufffd", "\ud800") == HOSTILE
    assert page.errors == []


def test_five_thousand_rollouts_stay_usable(browser: Browser, tmp_path: Path) -> None:
    rows = [row(i, i % 3 > 0, method) for method in ("ReSearch", "Guess") for i in range(2500)]
    page = show(browser, tmp_path, rows)
    page.click("#tab-rollouts")
    choose(page, "right", 1)
    assert page.value("document.querySelectorAll('.entry').length") < 60, "a window is rendered"
    begin = time.monotonic()
    for _ in range(20):
        page.press("ArrowDown")
    assert page.text(".at") == "21 of 2,500"
    page.value("document.getElementById('list').scrollTop = 62 * 2000")
    time.sleep(0.1)
    assert "house 2005?" in page.text("#list")
    page.click("[data-filter=wrong]")
    assert listed(page) == "834"
    assert time.monotonic() - begin < 20
    assert page.errors == []


def test_page_data_of_nothing() -> None:
    assert page_data([], [], "ReSearch", 5)["questions"] == []
