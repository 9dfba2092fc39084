"""Every option of a config, set to something of a stranger: it is refused, and nothing is run.

The options are found by looking into the parsers of ``fit`` and ``evaluate``, so a new one is
tested as well. See test_entry_points.py for the options of the other commands.
"""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles.entry_points import TRAINER, call, parser_of
from doubles.payloads import MODULE, SECRET, make_all, run, write_module

from research_rl.trainers.evaluate.config import DatasetConfig, ModelConfig

ASK = ("run_with_class", "run_with_environment", "run_with_resolver", "run_with_code")
ASK = (*ASK, "run_with_kernel")
"""Configs that ask for more than they may."""
WORDS: dict[str, Any] = {
    "class": {"class_path": f"{MODULE}.E"},
    "short class": f"{MODULE}.E",
    "module": f"{MODULE}:E-v0",
    "resolver": "${oc.env:" + SECRET + "}",
    "sentence": f"[class_path '{MODULE}.E': Option 'x' is not accepted",
}
"""What a stranger may write as a value; the sentence is one of jsonargparse's own errors."""


def options_of(command: str) -> list[str]:
    """Every option that takes more than a number or a yes."""
    parser = parser_of(command)
    for action in parser._actions:
        if command == "fit" and hasattr(action, "choices") and "fit" in (action.choices or ()):
            parser = action.choices["fit"]
    return [
        action.dest
        for action in parser._actions
        if (hint := getattr(action, "_typehint", None)) is not None
        and hint not in (int, float, bool)
        and not action.dest.endswith(".help")
    ]


def _slow(*commands: str) -> list[Any]:
    return [pytest.param(command, marks=SLOW) for command in commands]


SLOW, FAST = pytest.mark.slow, ("class", "resolver")
FIT = options_of("fit")
OURS = [name for name in FIT if name.startswith(("model.", "data."))]
EVALUATE = [
    *(name for name in options_of("evaluate") if name not in ("datasets", "models", "methods")),
    *("judges.theirs", "methods.theirs", "methods.theirs.class_path"),
    *(f"models.theirs.{field.name}" for field in fields(ModelConfig)),
    *(f"datasets.theirs.{field.name}" for field in fields(DatasetConfig)),
]


def put(config: dict[str, Any], option: str, value: Any) -> None:
    *places, last = option.split(".")
    for place in places:
        if not isinstance(config.get(place), dict):
            config[place] = {}
        config = config[place]
    config[last] = value


@pytest.fixture
def folder(here: Path, hostile: dict[str, Path]) -> Path:
    """A stranger's folder of a run, with a module of theirs."""
    made = here / "theirs"
    made.mkdir()
    write_module(made, hostile["ran"])
    (made / "metrics.csv").touch()
    return made


def test_the_options_are_found() -> None:
    assert {"model.engine", "model.env.id", "model.algorithm", "data.train"} <= {*OURS}
    assert {"trainer.callbacks", "trainer.plugins", "ckpt_path"} <= {*FIT}
    assert {"index", "run", "models.theirs.generator"} <= {*EVALUATE}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("option", "word"),
    [
        pytest.param(*(option, word), marks=() if word == "class" and option in OURS else SLOW)
        for option in FIT
        for word in WORDS
    ],
)
def test_no_option_of_a_run_runs_anything(
    option: str,
    word: str,
    folder: Path,
    hostile: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    """Read by ``plan``, whose parser is that of ``fit``."""
    config = yaml.safe_load((hostile["run_with_kernel"] / "config.yaml").read_text())
    del config["model"]["policy"]["attn_implementation"]
    put(config, option, WORDS[word])
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    _, said = call(monkeypatch, capfd, ["plan", "--config", folder / "config.yaml"])
    assert not hostile["ran"].exists(), said
    assert "secret" not in said.replace(SECRET, "")
    if word == "resolver":
        assert "--trust" in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", EVALUATE)
@pytest.mark.parametrize("word", [pytest.param(w, marks=() if w in FAST else SLOW) for w in WORDS])
def test_no_option_of_an_evaluation_runs_anything(
    option: str,
    word: str,
    folder: Path,
    hostile: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    """An evaluation's config that lies in a stranger's folder."""
    config: dict[str, Any] = {
        "models": {"theirs": {"model": str(hostile["model_with_pickle"])}},
        "datasets": {"theirs": {"world": {"num_questions": 1, "num_people": 60}}},
        "methods": {"ReSearch": "ReSearch"},
    }
    put(config, option, WORDS[word])
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(config))
    words = ["evaluate", "--config", folder / "evaluate.yaml", "--dry_run"]
    _, said = call(monkeypatch, capfd, words)
    assert not hostile["ran"].exists(), said
    assert "secret" not in said.replace(SECRET, "")
    if word == "resolver" or (word == "class" and option == "methods.theirs"):
        assert "--trust" in said


def trainer_line(command: str, config: Path, *more: Any) -> list[Any]:
    found = [command, "--config", config, *more, "--trainer.default_root_dir", "new"]
    if command == "collect":
        found += ["--out", "out", "--from", "policy"]
    if command == "sft":
        rows = Path("rows.jsonl")
        rows.write_text("")
        found += ["--data.train", rows]
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["fit", *_slow(*TRAINER[1:4]), "sft", "plan", "collect"])
@pytest.mark.parametrize("kind", [*ASK, "run_with_tag"])
def test_a_config_asks_in_vain(
    command: str,
    kind: str,
    here: Path,
    hostile: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    if command in ("plan", "sft") and kind == "run_with_environment":
        return  # they make no environment
    config = hostile[kind] / "config.yaml"
    status, said = call(monkeypatch, capfd, trainer_line(command, config))
    assert not hostile["ran"].exists(), said
    assert "secret" not in said.replace(SECRET, "")
    assert status == 2, said
    if kind in ASK:
        assert "--trust" in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["fit", *_slow(*TRAINER[1:4])])
@pytest.mark.parametrize("kind", ["pickled", "checkpoint", "shards"])
@pytest.mark.parametrize(
    "plugin",
    [
        None,
        *("lightning_fabric.plugins.io.TorchCheckpointIO", "pytorch_lightning.plugins.io.Async"),
    ],
)
def test_a_checkpoint_is_not_unpickled_whoever_reads_it(
    command: str,
    kind: str,
    plugin: str | None,
    here: Path,
    hostile: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    """Also where the config names another plug-in to read it, and asks for ``weights_only``."""
    shutil.copytree(hostile["run_with_tag"], here / "theirs")
    config = yaml.safe_load((hostile["run_with_class"] / "config.yaml").read_text())
    del config["model"]["engine"]
    config["trainer"]["default_root_dir"] = str(here / "out")
    config["weights_only"] = False
    if plugin is not None:
        name = "AsyncCheckpointIO" if plugin.endswith("Async") else plugin.rpartition(".")[2]
        place = plugin.rpartition(".")[0]
        config["trainer"]["plugins"] = [{"class_path": f"{place}.{name}"}]
    (here / "theirs" / "config.yaml").write_text(yaml.safe_dump(config))
    line = [command, "--config", here / "theirs" / "config.yaml", "--ckpt_path", hostile[kind]]
    status, said = call(monkeypatch, capfd, line)
    assert not hostile["ran"].exists(), said
    assert status == 2, said
    if kind != "pickled":  # that one is no checkpoint at all
        assert "nothing of it was run" in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "words",
    [
        ["ask", "Who?", "--index", "index", "--model", "model_with_code"],
        ["serve-policy", "model_with_code", "--port", "0"],
        ["index", "search", "index_with_code", "Oslo"],
        ["export", "--ckpt", "run_with_code/checkpoints/best.ckpt", "--out", "out"],
    ],
    ids=lambda words: words[0],
)
def test_trust_grants_it(
    words: list[str],
    here: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    """The same folders with --trust: their code runs, which is what was asked for."""
    made = make_all(tmp_path_factory.mktemp("granted"))
    line = [made.get(w.partition("/")[0], w) for w in words]
    if words[0] == "export":
        line[2] = made["run_with_code"] / "checkpoints" / "best.ckpt"
    if words[0] == "ask":
        line[3] = made["index_with_code"]
    monkeypatch.setattr("research_rl.envs.system.trust.TRUST", "RESEARCH_TEST_TRUST")
    monkeypatch.setenv("RESEARCH_TEST_TRUST", "1")
    with pytest.raises(Exception):  # noqa: B017, PT011  (their classes are no models)
        call(monkeypatch, capfd, line)
    assert made["ran"].exists()


def test_a_run_without_guile_asks_for_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (here / "mine").mkdir()
    run(here / "mine", here / "none")
    status, said = call(monkeypatch, capfd, ["plan", "--config", here / "mine" / "config.yaml"])
    assert status == 0, said
