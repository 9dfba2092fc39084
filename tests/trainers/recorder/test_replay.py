"""The flight recorder keeps what it says, and replay finds where records and runs part."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doubles.tiny_run import write_config

from research_rl.envs.retrieval import build_index
from research_rl.envs.synthetic.world import builtin_world
from research_rl.envs.types import Question, Reward
from research_rl.trainers.cli import dispatch as cli
from research_rl.trainers.recorder.callback import FlightRecorder
from research_rl.trainers.recorder.command import compare_runs
from research_rl.trainers.recorder.records import Record, RecordError, Records


def record(number: int = 0, size: int = 3) -> Record:
    return Record(
        question={"id": f"q{number}", "text": "Who?", "answers": ["I"], "metadata": {}},
        seed=number,
        prompt_ids=[1, 2],
        response_ids=list(range(size)),
        sampled=[1] * size,
        logprobs=[-0.1] * size,
        turns=["nonsense"],
        queries=[],
        passage_ids=[],
        reward=vars(Reward(0.0)),
        advantage=0.5,
        finish_reason="no_answer",
    )


def test_records_come_back_and_equal_runs_write_equal_bytes(tmp_path: Path) -> None:
    files = Records(tmp_path / "a")
    first = files.write(3, 3, [record(0), record(1)]).read_bytes()
    flight = files.read(3)
    assert (flight.iteration, flight.weights) == (3, 3)
    assert flight.records == [record(0), record(1)]
    assert Records(tmp_path / "b").write(3, 3, [record(0), record(1)]).read_bytes() == first
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["000003.jsonl.gz"]
    with pytest.raises(FileNotFoundError, match="got 3 to 3"):
        files.read(4)


def test_nothing_is_not_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = Records(tmp_path / "a"), Records(tmp_path / "b")
    a.write(0, 0, [record(0), record(1), record(1)])
    b.write(0, 0, [record(0), record(1)])
    with pytest.raises(ValueError, match="no recorded rollout answers the question 'q9'"):
        compare_runs(a, b, [0], "q9")
    assert compare_runs(a, b, [0], "q0"), "of other questions there may be more"
    assert "the same in all 1 iterations that both have recorded, 1 rollouts each" in (
        capsys.readouterr().out
    )
    assert not compare_runs(a, b, [0], "q1")
    assert "iteration 0: 2 rollouts of the question 'q1' and 1" in capsys.readouterr().out
    assert not compare_runs(a, b, [0])
    assert "iteration 0: 3 rollouts and 2" in capsys.readouterr().out
    assert not compare_runs(b, Records(tmp_path / "a"), [0], "q1")


def test_the_oldest_are_dropped_and_a_resumed_run_forgets(tmp_path: Path) -> None:
    size = Records(tmp_path / "one").write(0, 0, [record()]).stat().st_size
    files = Records(tmp_path / "many", max_bytes=3 * size + 30)
    for iteration in range(6):
        files.write(iteration, iteration, [record()])
    assert files.iterations() == [3, 4, 5]
    for left in (".000005.jsonl.gz.partial", ".000005.jsonl.gz.77.partial"):
        (files.folder / left).write_bytes(b"half")  # of a run that was killed
    files.forget(4)
    assert files.iterations() == [3]
    assert [p.name for p in files.folder.iterdir()] == ["000003.jsonl.gz"]
    Records(tmp_path / "many", max_bytes=1).write(9, 9, [record()])
    assert files.iterations() == [9]  # the newest stays, however large
    with pytest.raises(ValueError, match="max_megabytes must be positive"):
        FlightRecorder(max_megabytes=0)


def test_a_record_ends_at_a_newline_alone(tmp_path: Path) -> None:
    odd = replace(record(), turns=["a\u2028b\u2029c\x85d\x0be\rf\ng"])
    Records(tmp_path).write(0, 0, [odd, record(1)])
    assert Records(tmp_path).read(0).records == [odd, record(1)]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"x", lambda b: b[:-9]])
def test_a_damaged_file_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = Records(tmp_path).write(0, 0, [record()])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RecordError, match=r"000000\.jsonl\.gz must be a whole file"):
        Records(tmp_path).read(0)


def research(monkeypatch: pytest.MonkeyPatch, *args: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["research", *map(str, args)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of different length in one folder, that search in an index of the built-in world."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = folder / "corpus.jsonl"
    rows = ({"id": p.id, "contents": p.contents} for p in builtin_passages())
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build_index(corpus, folder / "index", kind="bm25")
    config = write_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit = ["fit", "--config", config, "--trainer.callbacks+=FlightRecorder"]
        fit += ["--model.env.index", folder / "index", "--model.sampling.max_response_tokens", 60]
        for seed in (3, 4):
            named = ["--trainer.default_root_dir", f"runs/{seed}", "--model.seed", seed]
            assert research(patch, *fit, *named) == 0
    return folder


def builtin_passages() -> list[Any]:
    questions, retriever = builtin_world()
    found = retriever.search([q.text for q in questions], 10)
    return list({p.id: p for group in found for p in group}.values())


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the first run, in the folder of both."""
    monkeypatch.chdir(trained)
    shutil.copytree(trained / "runs/3", tmp_path / "3")
    return tmp_path / "3"


def tamper(run: Path, iteration: int, change: Callable[[dict[str, Any]], None]) -> None:
    path = run / "records" / f"{iteration:06d}.jsonl.gz"
    head, *rows = map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines())
    change(rows[1])
    text = "".join(json.dumps(row) + "\n" for row in [head, *rows])
    path.write_bytes(gzip.compress(text.encode()))


def test_a_run_replays_as_recorded(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert research(monkeypatch, "replay", run) == 0
    said = capsys.readouterr().out
    # the weights before training are the model's folder; those after the last learned from all
    assert "8 rollouts played again, those of iteration 0 sampled" in said
    assert said.strip().endswith("as recorded")
    question = Records(run / "records").read(1).records[0].question["id"]
    assert research(monkeypatch, "replay", run, "--iteration", 1, "--question", question) == 0
    assert "2 rollouts played again" in capsys.readouterr().out
    assert research(monkeypatch, "replay", run, "--question", "nobody") == 2


def test_a_tampered_record_is_found(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(run, 0, lambda row: row["reward"].update(value=0.875))
    assert research(monkeypatch, "replay", run, "--iteration", 0) == 1
    said = capsys.readouterr().out
    assert "iteration 0, played again: 1 of 4 rollouts differ" in said
    assert "rollout 1" in said
    assert "reward, value: 0.875 and 0.0" in said

    tamper(run, 1, lambda row: row["response_ids"].__setitem__(2, 7))
    assert research(monkeypatch, "replay", run, "--against", "runs/3") == 1
    said = capsys.readouterr().out
    assert "the runs part in iteration 0, 1 rollouts differ" in said
    same = [run, "--against", "runs/3", "--iteration", 1]
    assert research(monkeypatch, "replay", *same) == 1
    assert "ids, token 2: 7 and" in capsys.readouterr().out


def test_two_runs_part_where_their_seeds_do(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert research(monkeypatch, "replay", run, "--against", "runs/4") == 1
    assert "the runs part in iteration 0" in capsys.readouterr().out
    assert research(monkeypatch, "replay", "runs/3", "--against", run) == 0
    assert "the same in all 2 iterations" in capsys.readouterr().out
    assert research(monkeypatch, "replay", run.parent) == 2
    assert "--trainer.callbacks+=FlightRecorder" in capsys.readouterr().err


def test_a_changed_index_is_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # a rollout that searches, as a better policy would have recorded it
    question = builtin_world()[0][0]
    passages = builtin_passages()
    turn = f"<think> x </think> <search> {passages[0].contents.split()[0]} </search>"
    path = Records(run / "records")
    searched = searching(question, turn, "bm25 has not been asked yet")
    path.write(0, 99, [searched])
    assert research(monkeypatch, "replay", run, "--iteration", 0) == 1
    assert "passages, search 0: ['bm25 has not been asked yet'] and [" in capsys.readouterr().out


def searching(question: Question, turn: str, passage: str) -> Record:
    base = vars(record())
    asked = {"id": question.id, "text": question.text, "answers": list(question.answers)}
    changed = {
        "question": {**asked, "metadata": {}},
        "turns": [turn, "never finished"],
        "queries": [turn.split("<search>")[1].split("</search>")[0].strip()],
        "passage_ids": [[passage]],
        "finish_reason": "length",
    }
    return Record(**{**base, **changed})
