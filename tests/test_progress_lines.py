"""Long work leaves lines in a log file, and a bar in a terminal."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from research_rl.envs.progress import progress_bar


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
    assert last.startswith("warm start: 4 of 4 (00:00 gone, 00:00 left, ")


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
