"""An evaluation that is stopped, killed or fails at some questions goes on to the same card."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doubles.evaluated import Fails, Oracle, arguments, card_of, question_file, rows_of

from research_rl.agents.types import ModelUnavailable
from research_rl.envs.system import FAILED
from research_rl.envs.system.locks import alone_in
from research_rl.trainers.cli.dispatch import main as research
from research_rl.trainers.evaluate.command import main

pytestmark = pytest.mark.usefixtures("fresh")


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    args = arguments(tmp_path / "out", question_file(tmp_path))
    main(args)
    asked, card = len(Oracle.asked), card_of(tmp_path / "out")
    main(args)
    assert (len(Oracle.asked), card_of(tmp_path / "out")) == (asked, card)


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(tmp_path / "out", question_file(tmp_path))
    monkeypatch.setattr(Oracle, "stop_after", 12)
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 130
    said = capsys.readouterr().err
    assert "12 of 40 answers are in" in said
    assert "the same command goes on" in said
    monkeypatch.setattr(Oracle, "stop_after", None)
    main(args)
    assert sorted(Oracle.asked) == sorted([f"q{i}" for i in range(20)] * 2), "each was asked once"


def test_two_processes_never_write_to_one_folder(tmp_path: Path) -> None:
    out, questions = tmp_path / "out", question_file(tmp_path)
    main([*arguments(out, questions), "--limit", "3"])
    rows = out / "rows.jsonl"
    rows.write_bytes(rows.read_bytes() + b'{"the other is writing th')
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with alone_in(out):
        with pytest.raises(FileExistsError, match="give --out another folder"):
            main(arguments(out, questions))
        main([*arguments(out, questions), "--dry_run"])  # looks, and does not write
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert len(Oracle.asked) == 6
    (out / ".rows.jsonl.1.partial").touch()  # of a process that was killed
    main(arguments(out, questions))
    assert len(rows_of(out)) == len(Oracle.asked) == 40
    assert not list(out.glob("*partial"))


def test_a_torn_line_is_asked_again(tmp_path: Path) -> None:
    args, out = arguments(tmp_path / "out", question_file(tmp_path)), tmp_path / "out"
    main(args)
    card = card_of(out)
    data = (out / "rows.jsonl").read_bytes()
    (out / "rows.jsonl").write_bytes(data[: len(data) - 100])
    Oracle.asked.clear()
    main(args)
    assert Oracle.asked == ["q19"]
    assert card_of(out) == card


@pytest.mark.slow
def test_a_kill_at_any_time_leads_to_the_same_card(tmp_path: Path) -> None:
    questions = question_file(tmp_path, 200)
    whole = tmp_path / "whole"
    main(arguments(whole, questions))
    torn = tmp_path / "torn"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [
        "from research_rl.trainers.evaluate.command import main",
        f"main({arguments(torn, questions)!r})",
    ]
    slow = "from doubles import evaluated; evaluated.Oracle.seconds = 0.05"
    code = "; ".join([slow, *run])
    for rows in (10, 230):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        path = torn / "rows.jsonl"
        while not path.is_file() or path.read_bytes().count(b"\n") < rows:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    Oracle.asked.clear()
    main(arguments(torn, questions))
    assert len(Oracle.asked) < 400 - 230
    assert card_of(torn) == card_of(whole)


def test_errors_are_gaps_and_are_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    methods = {"ReSearch": {"class_path": "doubles.evaluated.Fails", "init_args": {"knows": 10}}}
    args = arguments(out, question_file(tmp_path), **methods)
    monkeypatch.setattr(Fails, "failing", {"q3", "q17"})
    main(args)
    card = (out / "card.md").read_text("utf-8")
    assert "18 of 20 answers are in; 2 are errors" in card
    assert "| houses | ReSearch | 18 | 100.0 [" in card
    monkeypatch.setattr(Fails, "failing", set())
    Oracle.asked.clear()
    main(args)
    assert Oracle.asked == ["q3", "q17"]
    assert len(rows_of(out)) == 20
    assert "20 of 20 answers are in." in (out / "card.md").read_text("utf-8")


def test_a_silent_server_stops_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {"ReSearch": {"class_path": "doubles.evaluated.Fails"}}
    args = arguments(tmp_path / "out", question_file(tmp_path), **methods)
    monkeypatch.setattr(Fails, "failing", {f"q{i}" for i in range(4, 20)})
    with pytest.raises(ModelUnavailable, match=r"3 batches.*timed out.*asks again"):
        main(args)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 16
    assert sum(r["error"] is None for r in rows) == 4


@pytest.mark.parametrize("raises", [False, True])
def test_what_a_server_always_refuses_does_not_keep_the_card_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    out = tmp_path / "out"
    args = arguments(
        out,
        question_file(tmp_path),
        ReSearch={"class_path": "doubles.evaluated.Fails"},
        Guess="doubles.evaluated.Oracle",
    )
    monkeypatch.setattr(Fails, "failing", {f"q{i}" for i in range(20) if i % 4})
    main(args)
    whole = card_of(out)
    (out / "card.csv").unlink()  # killed behind the last answer
    monkeypatch.setattr(Fails, "raises", raises)
    monkeypatch.setattr(Fails, "failing", {f"q{i}" for i in range(20)})
    main(args)
    assert card_of(out) == whole
    assert "25 of 40 answers are in; 15 are errors" in (out / "card.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("most", "refused", "left", "said"),
    [
        (3, range(15), range(12), "15 questions stay errors; 12 of 15 were asked again"),
        (9, range(15), range(15), "15 questions stay errors; 15 of 15 were asked again"),
        (3, range(0, 15, 4), range(15), "4 questions stay errors; 15 of 15 were asked again"),
    ],
)
def test_a_batch_that_fails_again_keeps_no_other_from_being_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    most: int,
    refused: range,
    left: range,
    said: str,
) -> None:
    args = arguments(
        tmp_path / "out",
        question_file(tmp_path),
        ReSearch={"class_path": "doubles.evaluated.Fails"},
    )
    failed = [i for i in range(20) if i % 4]
    monkeypatch.setattr(Fails, "failing", {f"q{i}" for i in failed})
    main(args)
    Oracle.asked.clear()
    monkeypatch.setattr(Fails, "failing", {f"q{failed[i]}" for i in refused})
    main([*args, "--max_failed_batches", str(most)])
    assert len(set(Oracle.asked)) == len(Oracle.asked) == len(left)
    assert said in caplog.text
    assert sum(r["error"] is not None for r in rows_of(tmp_path / "out")) == len(refused)


@pytest.mark.parametrize("failing", ["ReSearch", "both"])
def test_a_cell_of_nothing_but_errors_is_no_success(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failing: str,
) -> None:
    out = tmp_path / "out"
    methods = {"ReSearch": {"class_path": "doubles.evaluated.Fails"}, "Guess": "doubles.evaluated"}
    methods["Guess"] += ".Fails" if failing == "both" else ".Oracle"
    args = arguments(out, question_file(tmp_path, 8), **methods)  # fewer than three batches
    monkeypatch.setattr(Fails, "failing", {f"q{i}" for i in range(8)})
    for _ in range(2):  # a second time all are asked again in vain
        monkeypatch.setattr(sys, "argv", ["research", "evaluate", *args])
        with pytest.raises(SystemExit) as ended:
            research()
        said = capsys.readouterr().err
        assert ended.value.code == FAILED
        assert "ReSearch" in said
        assert "(8 of 8)" in said
        assert "timed out" in said
        assert said.count("(8 of 8)") == (2 if failing == "both" else 1)
        assert (out / "card.md").is_file()
    monkeypatch.setattr(Fails, "failing", set())
    main(args)
    assert "16 of 16 answers are in." in (out / "card.md").read_text("utf-8")
