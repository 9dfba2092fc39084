"""Every command that the README and the guides show: it parses, and is run or listed as not run."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from doubles.entry_points import call
from doubles.page_commands import LIST, PAGES, commands, not_run, ours, parse, write_files
from doubles.places import ROOT

SHOWN = [
    (page, command) for page in PAGES for command in commands(page.read_text(encoding="utf-8"))
]
LINES = list(dict.fromkeys(shlex.join(words) for _, words in SHOWN))
OURS = [words for _, command in SHOWN if (words := ours(command)) is not None]
STATUS = {"lint-reward cover": 1}
"""What a command ends with where that is not 0."""
CHEAP = re.compile(
    r"(?:fit .*--print_config|fit --model\.algorithm\.help|index build --corpus corpus\.jsonl"
    r"|index search|data audit|lint-reward|plan)\b"
)
"""Those that take a second or two."""


def spelled(words: list[str]) -> str:
    return shlex.join(words).removeprefix(".venv/bin/")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the guides show."""
    folder = tmp_path_factory.mktemp("desk")
    write_files(folder)
    return folder


@pytest.fixture
def here(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for file in desk.glob("*.py"):  # another test may have imported one of that name
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    return desk


def test_the_first_command_brings_the_repository() -> None:
    assert SHOWN[0][1][:2] == ["git", "clone"]


def test_every_command_is_run_or_listed() -> None:
    """Where this fails, mark the command as cheap here or give docs/guides/tested.md the reason."""
    listed = not_run()
    used = set()
    for page, command in SHOWN:
        words = ours(command)
        if words is not None and CHEAP.match(shlex.join(words)):
            continue
        rows = [row for row in listed if spelled(command).startswith(row)]
        assert rows, f"{page.name}: {spelled(command)}"
        used.update(rows)
    assert used == set(listed), f"{LIST.name} lists what no page shows"


def test_every_command_parses(here: Path) -> None:
    refused = {}
    for words in OURS:
        try:
            parse(words)
        except Exception as error:
            refused[shlex.join(words)] = str(error)
    assert not refused


def test_cheap_commands_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = sorted(
        dict.fromkeys(shlex.join(words) for words in OURS if CHEAP.match(shlex.join(words))),
        key=lambda line: not line.startswith("index build"),  # others search what it makes
    )
    assert len(wanted) > 10
    for line in wanted:
        status, said = call(monkeypatch, capfd, shlex.split(line))
        assert status == STATUS.get(line, 0), f"research {line}: {said}"


def test_the_environment_of_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), found)
    assert found["result"].startswith(" <result>\nMurdur")
