"""The examples run as they are, offline."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from doubles.places import ROOT

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_demo_answers_by_its_gold_chain() -> None:
    output = run("play_by_hand.py", "--demo", "--seed", "3")
    assert "reward 1.00" in output
    assert "\x1b" not in output  # a pipe is no terminal
    assert "<answer> It is" in output
    assert output.count("<result>") == output.count("<search>")


def test_a_question_is_played_by_hand() -> None:
    output = run("play_by_hand.py", stdin="the boss of nobody\n= nobody\n")
    assert "Ctrl-D" in output
    assert output.count("<result>") == 1  # nothing is shown twice
    assert "reward 0.10, 1 search, answer" in output
    assert re.search(r"^right: [A-Z]\w+$", output, re.MULTILINE)


def test_the_end_of_the_input_gives_up() -> None:
    output = run("play_by_hand.py", stdin="the boss of nobody\n")
    assert "reward 0.00, 1 search, no_answer" in output
    assert "right: " in output


@pytest.mark.slow
def test_the_plain_loop_is_short_and_learns() -> None:
    assert len((EXAMPLES / "cleanrl_loop.py").read_text("utf-8").splitlines()) < 60
    rewards = [float(r) for r in re.findall(r"reward (\S+)", run("cleanrl_loop.py"))]
    assert rewards[0] < 0.35
    assert min(rewards[-3:]) > 0.55
