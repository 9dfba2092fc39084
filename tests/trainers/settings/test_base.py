"""A config that names its base is read behind it, as if both had been given in that order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from research_rl.trainers.settings.shipped import (
    CONFIGS,
    OneLineParser,
    ShippedConfigFile,
    find_config,
    shipped_configs,
)


def parsed(*configs: Path | str) -> dict[str, Any]:
    parser = OneLineParser(exit_on_error=False, parser_mode="omegaconf+")
    parser.add_argument("--config", action=ShippedConfigFile)
    parser.add_argument("--root", type=str, default="nowhere")
    parser.add_argument("--model.size", type=int, default=0)
    parser.add_argument("--model.logs", type=str, default="")
    parser.add_argument("--model.layers", type=list[int], default=[])
    arguments = [word for config in configs for word in ("--config", str(config))]
    found = parser.parse_args(arguments)
    printed = yaml.safe_load(parser.dump(found))
    assert "base" not in printed
    return {key: printed[key] for key in ("root", "model")}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configs that is not the working directory."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(tmp_path / "small.yaml", "root: runs/small\nmodel: {size: 1, layers: [1, 2]}")
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(f"# what it is\n{text}\n", encoding="utf-8")
    return path


def test_a_base_is_read_first(folder: Path) -> None:
    big = write(folder / "big.yaml", "base: small.yaml   # beside it\nmodel: {size: 9}")
    assert parsed(big) == parsed(folder / "small.yaml", write(big, "model: {size: 9}"))


def test_a_base_may_have_a_base(folder: Path) -> None:
    write(folder / "big.yaml", "model: {size: 9, layers+: [3]}\nbase: small.yaml")
    huge = write(folder / "huge.yaml", f"base: {folder / 'big.yaml'}\nroot: runs/huge")
    expected = {"root": "runs/huge", "model": {"size": 9, "logs": "", "layers": [1, 2, 3]}}
    assert parsed(huge) == expected


def test_what_is_given_later_wins(folder: Path) -> None:
    big = write(folder / "big.yaml", "base: small.yaml\nmodel: {size: 9}")
    assert parsed(big, folder / "small.yaml")["model"]["size"] == 1


def test_references_of_the_base_follow_the_config(folder: Path) -> None:
    write(folder / "logged.yaml", "root: runs/a\nmodel: {logs: '${root}/logs'}")
    assert parsed(write(folder / "b.yaml", "base: logged.yaml\nroot: runs/b")) == {
        "root": "runs/b",
        "model": {"size": 0, "logs": "runs/b/logs", "layers": []},
    }


def test_a_config_may_say_nothing_but_its_base(folder: Path) -> None:
    assert parsed(write(folder / "same.yaml", "base: small.yaml")) == parsed(folder / "small.yaml")


def test_a_key_named_base_further_in_is_left_alone(folder: Path) -> None:
    with pytest.raises(Exception, match="base"):
        parsed(write(folder / "in.yaml", "model:\n  base: small.yaml"))


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("research_7c", "'research_7c'; did you mean research_7b?"),
        ("none.yaml", "a config beside it or one that ships with the package, got 'none.yaml'"),
        ("[small.yaml]", "got ['small.yaml']"),
        ("", "got None"),
        ("../mine.yaml", "got '../mine.yaml'"),
        ("big.yaml", "big.yaml -> big.yaml"),
        ("round.yaml", "big.yaml -> round.yaml -> big.yaml"),
    ],
)
def test_a_base_that_cannot_be_read_is_refused(folder: Path, base: str, said: str) -> None:
    write(folder / "round.yaml", "base: big.yaml")
    big = write(folder / "big.yaml", f"base: {base}")
    with pytest.raises(Exception, match=r"big\.yaml: base must") as caught:
        parsed(big)
    assert said in " ".join(str(caught.value).split())


def test_a_base_that_is_no_config_is_named(folder: Path) -> None:
    (folder / "empty.yaml").write_text("", encoding="utf-8")
    with pytest.raises(Exception, match=r"empty\.yaml must hold sections"):
        parsed(write(folder / "big.yaml", "base: empty.yaml"))


def test_bases_of_shipped_configs_ship() -> None:
    texts = {
        name: Path(find_config(name)).read_text(encoding="utf-8") for name in shipped_configs()
    }
    bases = {name: yaml.safe_load(text).get("base") for name, text in texts.items()}
    assert bases["research_7b_instruct"] == bases["research_32b_instruct"] == "research_7b"
    assert all((CONFIGS / f"{base}.yaml").is_file() for base in bases.values() if base)
