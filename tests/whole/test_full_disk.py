"""A disk that fills up while a command works: path, leftover and way on are named, nothing hides.

The limit on the size of a file stands for the disk: the system refuses to write more.
"""

from __future__ import annotations

import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles.entry_points import call
from doubles.payloads import run
from doubles.tiny_run import write_checkpoint, write_config, write_policy

from research_rl.envs.system import TRUST


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Within, no file grows larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_policy(folder / "model")
    (folder / "run").mkdir()
    run(folder / "run", folder / "none")
    write_checkpoint(folder / "run" / "checkpoints" / "best.ckpt", folder / "run" / "policy")
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    (folder / "own").mkdir()
    (folder / "own" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "tiny").mkdir()
    write_config(folder / "tiny")
    rows = (f'{{"id": "{i}", "contents": "Town {i}\\nTown {i} is a town."}}\n' for i in range(200))
    (folder / "corpus.jsonl").write_text("".join(rows))
    asked = (
        f'{{"id": "q{i}", "question": "Who is {i}?", "golden_answers": ["I"]}}\n'
        for i in range(200)
    )
    (folder / "questions.jsonl").write_text("".join(asked))
    evaluation = {
        "models": {"tiny": {"model": str(folder / "model")}},
        "datasets": {"world": {"world": {"num_questions": 20, "num_people": 60}}},
        "methods": {
            "ReSearch": {"class_path": "ReSearch", "init_args": {"max_response_tokens": 64}}
        },
    }
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(evaluation))
    return folder


COMMANDS: dict[str, tuple[int, Any, str]] = {
    "index build": (
        3000,
        lambda w: ["index", "build", "--corpus", w / "corpus.jsonl", "--out", "out", "--quiet"],
        "make room",
    ),
    "data convert": (
        3000,
        lambda w: [
            *("data", "convert", w / "questions.jsonl", "--from", "other", "--split", "test"),
            *("--out", "out"),
        ],
        "give the same command again",
    ),
    "collect": (
        3000,
        lambda w: [
            *("collect", "--config", w / "own" / "config.yaml", "--from", "policy"),
            *("--min_reward", "0", "--questions", w / "questions.jsonl", "--out", "out"),
            *("--batch_size", "8"),
        ],
        "give the same command again",
    ),
    "evaluate": (
        3000,
        lambda w: ["evaluate", "--config", w / "evaluate.yaml", "--out", "out"],
        "give the same command again",
    ),
    "fit": (
        30_000,
        lambda w: [
            *("fit", "--config", w / "tiny" / "tiny.yaml"),
            *("--trainer.default_root_dir", "out"),
        ],
        "make room, then start anew",
    ),
    "export": (
        3000,
        lambda w: [
            *("export", "--ckpt", w / "run" / "checkpoints" / "best.ckpt", "--config"),
            *(w / "own" / "config.yaml", "--out", "out"),
        ],
        "give the same command again",
    ),
    "predict": (
        300,
        lambda w: [
            *("predict", "--config", w / "own" / "config.yaml", "--data.test"),
            *(w / "questions.jsonl", "--trainer.default_root_dir", "out", "--trainer.logger"),
            "false",
        ],
        "give the same command again",
    ),
}
"""How large a file may grow, the command, and the way on that it must name."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    size, words, way_on = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TRUST, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with files_of_at_most(size):
        status, said = call(monkeypatch, capfd, words(world))
    assert status == 2, said
    assert "out" in said, said
    assert "too large" in said or "No space" in said
    assert "MB free" in said
    assert way_on in said
    hidden = [p.name for p in tmp_path.rglob(".*") if p.name != ".lock" and p.name not in said]
    assert not hidden


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["data convert", "index build", "collect", "evaluate", "export"])
def test_the_same_command_goes_on_where_there_is_room_again(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    size, words, _ = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TRUST, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with files_of_at_most(size):
        assert call(monkeypatch, capfd, words(world))[0] == 2
    status, said = call(monkeypatch, capfd, words(world))
    assert status == 0, said
    assert not list(tmp_path.rglob(".*partial"))
    shutil.rmtree(tmp_path / "out")
