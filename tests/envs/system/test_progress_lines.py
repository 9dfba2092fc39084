"""Long work leaves lines in a log file, and a bar in a terminal."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from research_rl.envs.system.progress import _speed, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    for step in progress_bar(range(4), "warm start", unit="step", seconds=0.01):
        time.sleep(0.02 * step)
    text = log.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    *before, last = text.splitlines()
    assert before
    assert all(line.startswith("warm start: ") for line in before)
    assert re.fullmatch(r"warm start: 4 of 4 \(00:00 gone, 00:00 left, [\d.]+k? steps/s\)", last), (
        last
    )


def test_no_speed_is_said_before_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(total=9, desc="encoding", initial=3, unit=" passages", seconds=0.0) as bar:
        bar.refresh()
    assert log.getvalue().splitlines()[-1].endswith("gone, ? left)"), log.getvalue()


@pytest.mark.parametrize(
    ("rate", "unit", "said"),
    [
        (85.69, "question", "85.69 questions/s"),
        (3200, " passages", "3.20k passages/s"),
        (0.4, " passages", "2.50 s/passage"),
        (1.5e6, "B", "1.50MB/s"),
    ],
)
def test_a_speed_has_its_unit_in_words(rate: float, unit: str, said: str) -> None:
    assert _speed(rate, unit) == said


def test_a_line_names_what_is_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(total=2, unit="question", seconds=0.0) as bar:
        bar.set_description("IRCoT, 1 hop")
        bar.update(2)
    said = log.getvalue().splitlines()
    assert said
    assert all(re.match(r"(IRCoT, 1 hop: )?\d of 2 \(", line) for line in said), said
    assert said[-1].startswith("IRCoT, 1 hop: 2 of 2 (")


@pytest.mark.parametrize("leave", [True, False])
def test_what_is_over_at_once_leaves_nothing(leave: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(desc="reading", total=3, leave=leave) as bar:
        bar.update(3)
    assert log.getvalue() == ""


def test_a_terminal_keeps_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    list(progress_bar(range(3), "reading"))
    assert "\rreading: 100%|" in screen.getvalue()
