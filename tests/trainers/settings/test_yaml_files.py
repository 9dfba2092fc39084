"""A config that stands for more than a config is refused in a line, before anything is made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from research_rl.trainers.cli import dispatch as cli
from research_rl.trainers.settings import UsageError
from research_rl.trainers.settings.shipped import CONFIGS, shipped_configs
from research_rl.trainers.settings.yaml_files import DEEPEST, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
TEXTS = {
    "aliases": (BOMB, "values"),
    "brackets": ("a: " + "[" * 3000 + "]" * 3000, "deep"),
    "open": ("a: " + "[" * 3000, "deep"),
    "sections": ("\n".join(" " * i + f"k{i}:" for i in range(DEEPEST + 1)) + " 1", "deep"),
    "circle": ("a: &a [*a, *a]\nb: " + "[" * 200, "deep"),
}
each = pytest.mark.parametrize(("text", "said"), TEXTS.values(), ids=TEXTS)


@each
def test_a_text_beyond_bounds_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"mine.yaml must .*{said}"):
        read_yaml(file)


@each
@pytest.mark.parametrize("inline", [False, True])
def test_a_command_says_so_in_a_line(
    text: str,
    said: str,
    inline: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    given = text if inline else str(tmp_path / "mine.yaml")
    monkeypatch.setattr(sys, "argv", ["research", "plan", "--config", given])
    with pytest.raises(SystemExit):
        cli.main()
    line = capsys.readouterr().err
    assert line.startswith("research: error: ")
    assert said in line
    assert len(line) < 500


def test_the_shipped_configs_are_within_bounds() -> None:
    for name in shipped_configs():
        file = CONFIGS / f"{name}.yaml"
        assert read_yaml(file) == yaml.safe_load(file.read_text())
