"""Terminals, streams, folders and users as they come: a line that says what is wrong, or none."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from doubles.entry_points import call
from doubles.payloads import run
from doubles.tiny_run import write_checkpoint, write_policy

from research_rl.envs.retrieval.index.build import build_index
from research_rl.envs.system import TRUST, alone_in

SHADOWS = ("json", "yaml", "numpy", "torch", "jsonargparse", "filelock", "faiss", "gymnasium")
"""Modules that lie in the current folder, under the names of installed ones."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    rows = '{"id": "1", "contents": "Ångström\\nÅngström was a physicist – \\u202e\\u001b[2J"}\n'
    (folder / "corpus.jsonl").write_text(rows, encoding="utf-8")
    (folder / "questions.jsonl").write_text(
        '{"id": "q", "question": "Who?", "golden_answers": ["I"]}\n'
    )
    build_index(folder / "corpus.jsonl", folder / "index")
    write_policy(folder / "model")
    (folder / "run").mkdir()
    run(folder / "run", folder / "none")
    write_checkpoint(folder / "run" / "checkpoints" / "best.ckpt", folder / "run" / "policy")
    (folder / "own").mkdir()
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    (folder / "own" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "evaluate.yaml").write_text(
        yaml.safe_dump(
            {
                "models": {"tiny": {"model": str(folder / "model")}},
                "datasets": {"world": {"world": {"num_questions": 2, "num_people": 60}}},
                "methods": {"ReSearch": "ReSearch"},
            }
        )
    )
    # as pip writes it: the folder of the script is first on sys.path, not the current one
    (folder / "research").write_text("from research_rl.trainers.cli import main\nmain()\n")
    return folder


def research(
    world: Path, *words: Any, env: dict[str, str] | None = None, **how: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the console script in a process of its own."""
    surroundings = {**os.environ, "COLUMNS": "80", **(env or {})}
    command = [sys.executable, str(world / "research"), *map(str, words)]
    return subprocess.run(command, capture_output=True, env=surroundings, timeout=120, **how)


def search(world: Path) -> list[Any]:
    return ["index", "search", world / "index", "Ångström"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_output_that_the_terminal_cannot_encode_is_escaped(encoding: str, world: Path) -> None:
    env = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = research(world, *search(world), env=env)
    assert done.returncode == 0, done.stderr
    assert b"physicist" in done.stdout
    assert b"\x1b" not in done.stdout
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, world: Path) -> None:
    words = " ".join(map(str, search(world)))
    done = subprocess.run(
        f"{sys.executable} {world / 'research'} {words} {closed}",
        shell=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_a_pipe_that_is_closed_ends_quietly(world: Path) -> None:
    many = [word for _ in range(3000) for word in ("Ångström",)]
    command = [sys.executable, str(world / "research"), "index", "search", str(world / "index")]
    with subprocess.Popen(
        [*command, *many], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(120) == 141
    assert said == b""


@pytest.mark.parametrize("columns", ["1", "20"])
def test_a_narrow_or_dumb_terminal(columns: str, world: Path, tmp_path: Path) -> None:
    env = {"COLUMNS": columns, "TERM": "dumb"}
    out = tmp_path / "out"
    words = ["index", "build", "--corpus", world / "corpus.jsonl", "--out", out]
    done = research(world, *words, env=env)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert research(world, "index", "build", "--help", env=env).returncode == 0


@pytest.mark.slow
def test_modules_of_the_current_folder_take_no_installed_ones_place(
    world: Path, tmp_path: Path
) -> None:
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file in this folder ran')\n")
    for words in (search(world), ["plan", "--config", world / "run" / "config.yaml"]):
        done = research(world, *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert b"the file in this folder ran" not in done.stderr + done.stdout


COMMANDS_WITHOUT_HOME: dict[str, list[str]] = {
    "--help": ["--help"],
    "fit --print_config": ["fit", "--config", "quickstart", "--print_config"],
    "index build": ["index", "build", "--corpus", "WORLD/corpus.jsonl", "--out", "out"],
    "plan": ["plan", "--config", "quickstart"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS_WITHOUT_HOME)
def test_without_a_home(name: str, world: Path, tmp_path: Path) -> None:
    """A user of a container, whom no file knows, in a folder that everybody may write to."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HOME", "XDG", "HF_", "USER"))}
    how: dict[str, Any] = {"env": env, "cwd": tmp_path, "capture_output": True, "timeout": 300}
    if os.getuid() == 0:
        tmp_path.chmod(0o777)
        for folder in {*tmp_path.parents, world, *world.parents}:  # pytest's are its owner's alone
            if Path(tempfile.gettempdir()) in folder.parents:
                folder.chmod(folder.stat().st_mode | 0o055)
        try:  # an interpreter may lie in root's own folder
            subprocess.run([sys.executable, "-c", ""], user=54321, check=True, **how)
        except (PermissionError, subprocess.CalledProcessError) as error:
            pytest.skip(f"another user may not run this interpreter: {error}")
        how["user"] = 54321
    words = [word.replace("WORLD", str(world)) for word in COMMANDS_WITHOUT_HOME[name]]
    done = subprocess.run([sys.executable, str(world / "research"), *words], **how)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert not (tmp_path / "~").exists()


def writers(world: Path, out: Path) -> dict[str, list[Any]]:
    """Every command that makes a folder, with that folder."""
    config = world / "own" / "config.yaml"
    best = world / "run" / "checkpoints" / "best.ckpt"
    return {
        "fit": ["fit", "--config", config, "--trainer.default_root_dir", out],
        "collect": ["collect", "--config", config, "--from", "policy", "--out", out],
        "evaluate": ["evaluate", "--config", world / "evaluate.yaml", "--out", out],
        "index build": ["index", "build", "--corpus", world / "corpus.jsonl", "--out", out],
        "data convert": [
            *("data", "convert", world / "questions.jsonl", "--from", "other", "--split", "test"),
            *("--out", out),
        ],
        "export": ["export", "--ckpt", best, "--config", config, "--out", out],
    }


NAMES = list(writers(Path(), Path()))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TRUST, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not Path("/sys").is_dir(), reason="needs a folder that nobody may write to")
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_may_not_be_written_to(
    name: str, world: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    words = writers(world, Path("/sys/research"))[name]
    status, said = call(monkeypatch, capfd, words)
    assert status == 2, said
    assert "/sys/" in said
    assert "Permission" in said or "not permitted" in said or "Read-only" in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_in_one_folder(
    name: str, world: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    held = here / {"index build": ".out.building", "export": ".out.exporting"}.get(name, "out")
    with alone_in(held):
        status, said = call(monkeypatch, capfd, writers(world, here / "out")[name])
    assert status == 2, said
    assert "wait until it has ended" in said
    assert name != "export" or not (here / "out").exists()


@pytest.mark.slow
def test_two_exports_at_once_leave_one_whole_folder(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = map(str, writers(world, out)["export"])
    command = [sys.executable, str(world / "research"), *words]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=300)[1].decode() for process in both]
    states = sorted(process.returncode for process in both)
    assert states == [0, 2], said
    assert any("another export" in one or "empty or a new folder" in one for one in said), said
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "model.safetensors").is_file()


def test_an_index_is_searched_where_nothing_may_be_written(world: Path, tmp_path: Path) -> None:
    """Bound read-only where that may be done, else without the right to write."""
    bound = tmp_path / "bound"
    bound.mkdir()
    mount = ["mount", "--bind", str(world), str(bound)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        again = ["mount", "-o", "remount,ro,bind", str(bound)]
        if subprocess.run(again, capture_output=True).returncode != 0:
            pytest.skip("needs the right to mount")
        done = research(world, "index", "search", bound / "index", "Ångström")
        assert done.returncode == 0, done.stderr
        assert b"physicist" in done.stdout
    finally:
        subprocess.run(["umount", str(bound)], capture_output=True)
