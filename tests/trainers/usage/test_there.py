"""A file that is not there is told before the libraries that would read it are imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from research_rl.trainers.cli import dispatch
from research_rl.trainers.usage import check_there

MISSING = {
    "fit": ("--config quickstart --data.train no.jsonl", "no.jsonl: there is no such file"),
    "validate": ("--config quickstart --data.val=no.jsonl#dev", "no.jsonl: there is no such file"),
    "test": ("--config quickstart --data.test no.jsonl", "no.jsonl: there is no such file"),
    "sft": ("--config small_cpu --data.train no.jsonl", "there is no rollout file no.jsonl"),
    "collect": (
        "--config small_cpu --out made --questions no.jsonl",
        "no.jsonl: there is no such file",
    ),
    "data": ("audit --questions no.jsonl --index no", "no.jsonl: there is no such file"),
    "questions": ("make --index no --out made", "index folder no does not exist"),
    "ask": ("who --index no --model m", "index folder no does not exist"),
    "serve-agent": ("--index=no --model m", "index folder no does not exist"),
}


@pytest.mark.parametrize("command", MISSING)
def test_it_is_told_before_the_command_is_imported(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def imported(name: str) -> Any:
        raise AssertionError(f"{name} was imported")

    words, reason = MISSING[command]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatch, "import_module", imported)
    monkeypatch.setattr(sys, "argv", ["research", command, *words.split()])
    with pytest.raises(SystemExit):
        dispatch.main()
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("command", ["data", "questions", "ask"])
def test_the_command_itself_says_the_same(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    words, _ = MISSING[command]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["research", command, *words.split()])
    said = []
    for check in (check_there, lambda command, args: None):
        monkeypatch.setattr(dispatch, "check_there", check)
        with pytest.raises(SystemExit):
            dispatch.main()
        said.append(capsys.readouterr().err.splitlines()[-1])
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("fit", "--data.train here.jsonl --data.val null"),
        ("fit", "--data.train owner/name#train"),  # of the Hub
        ("fit", "--data.train ${data.val}"),
        ("fit", "--model.env.index made/by/the/world --data.world.folder made"),
        ("ask", "who --index http://127.0.0.1:8000"),
        ("validate", "--data.train no.jsonl"),  # which it does not read
        ("data", "convert --questions no.jsonl"),
        ("collect", "--questions no.jsonl --help"),
        ("collect", "--questions"),  # its parser says that a value is missing
        ("data", ""),
        ("fit", "--data.train --data.val null"),
    ],
)
def test_what_may_be_there_is_let_through(
    command: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").touch()
    check_there(command, words.split())


def test_no_torch_is_needed_for_it(tmp_path: Path) -> None:
    code = (
        "import sys; from research_rl.trainers.usage import check_there\n"
        "try: check_there('questions', ['make', '--index', 'no'])\n"
        "except ValueError: print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.split() == ["False", "False"]
