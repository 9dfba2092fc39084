"""Shipped configs, bug reports, the schema and completion: what they say is true and no secret."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from research_rl.trainers.cli import COMMANDS
from research_rl.trainers.desk import completion, configs, env, schema
from research_rl.trainers.settings import CONFIGS, UsageError, shipped_configs


def test_every_shipped_config_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configs.main([])
    said = capsys.readouterr().out
    for name in shipped_configs():
        line = configs.line_about(name)
        assert f"  {name} " in said
        assert line in said
        assert 15 < len(line) < 200, name
        assert re.search(r"[^.:][.?!]$", line), line
        assert "--config" not in line


def test_one_config_or_a_folder_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    configs.main(["quickstart"])
    assert capsys.readouterr().out == (CONFIGS / "quickstart.yaml").read_text("utf-8")
    configs.main(["guard/", "--json"])
    assert set(json.loads(capsys.readouterr().out)) == {"guard/act", "guard/warn"}
    for odd in ("qickstart", "../setup", "/etc/passwd"):
        with pytest.raises(UsageError, match="no shipped config"):
            configs.main([odd])


def test_a_bug_report_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESEARCH_API_KEY", "hidden-key")
    monkeypatch.setenv("HF_TOKEN", "hidden-token")
    monkeypatch.setenv("OPENAI_API_KEY", "hidden-too")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.chdir(tmp_path)
    env.main(["--quick"])
    said = capsys.readouterr().out
    assert "hidden" not in said
    assert str(tmp_path) not in said
    assert re.search(r"RESEARCH_API_KEY +set", said)
    assert re.search(r"OMP_NUM_THREADS +3", said)
    env.main(["--quick", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["python"].startswith("3.")
    assert found["extras"]["cpu"].startswith(("faiss-cpu", "missing"))


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    found = schema.config_schema()
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def test_the_schema_knows_the_options(described: dict[str, Any]) -> None:
    trainer, model = (described["properties"][name] for name in ("trainer", "model"))
    assert "callbacks+" in trainer["properties"]
    group = model["properties"]["updates"]
    text = json.dumps(group)
    assert "group_size" in text
    assert "rollouts of each question" in text, "with what it means"
    assert "required" not in described


def test_the_schema_does_not_grow_with_what_is_loaded(described: dict[str, Any]) -> None:
    """Thousands of modules, or somebody's own subclasses, may be loaded in the same process."""
    paths = re.findall(r'"enum": \["(\w+)", "([\w.]+\.\1)"\]', json.dumps(described))
    assert len(paths) > 50
    packages = {path.partition(".")[0] for _, path in paths}
    assert packages <= {"research_rl", "torch", "pytorch_lightning", "lightning_fabric"}
    assert not any(path.startswith("torch.nn.") for _, path in paths)
    assert ("GRPO", "research_rl.trainers.algorithms.GRPO") in paths, "our modules are there"


def test_shipped_configs_fit_the_schema(described: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(described)
    for name in shipped_configs():
        if not name.startswith(("evaluate/", "method/", "retriever/")):
            config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text("utf-8"))
            wrong = [error.message[:200] for error in check.iter_errors(config)]
            assert not wrong, name
    own = {"model": {"algorithm": {"class_path": "my_file.MyRule", "init_args": {"x": 1}}}}
    assert not list(check.iter_errors(own))
    for wrong in ({"updates": {"group_sise": 3}}, {"algorithm": {"class_path": "GRPPO"}}):
        assert list(check.iter_errors({"model": wrong})), wrong


def test_completion_knows_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    whole = completion.whole_parser({n: m for n, m in COMMANDS.items() if n != "serve-policy"})
    below = next(a for a in whole._actions if a.choices and "fit" in a.choices)
    choices: Any = below.choices
    assert set(choices) == set(COMMANDS) - {"serve-policy"}
    options = {name: set(its._option_string_actions) for name, its in choices.items()}
    assert {"--quick", "--out", "--trust"} <= options["page"]
    assert {"--config", "--ckpt_path"} <= options["fit"]
    assert "--config" in options["plan"]
    config = choices["fit"]._option_string_actions["--config"]
    assert "quickstart" in config.choices
    pytest.importorskip("shtab")
    completion.main(["bash"])
    assert "quickstart" in capsys.readouterr().out


def test_completion_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install shtab"):
        completion.main(["bash"])
