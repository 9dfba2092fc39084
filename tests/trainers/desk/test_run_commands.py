"""The commands that show runs: they write pages, print tables, load no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from doubles.run_folders import dead, healthy

from research_rl.trainers.cli import dispatch


def research(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["research", *map(str, args)])
    try:
        dispatch.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = healthy(tmp_path / "run")
    assert research(monkeypatch, "page", run, "--quick") == 0
    assert capsys.readouterr().out == f"wrote {run / 'index.html'}\n"
    assert "<h1>run</h1>" in (run / "index.html").read_text("utf-8")
    assert research(monkeypatch, "page", run, "--quick", "--out", tmp_path / "other.html") == 0
    assert (tmp_path / "other.html").is_file()
    assert research(monkeypatch, "page", tmp_path / "nothing") == 2
    assert "must be the folder of a run" in capsys.readouterr().err


def test_compare(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = healthy(tmp_path / "a"), healthy(tmp_path / "b", gain=0.5)
    monkeypatch.chdir(tmp_path)
    assert research(monkeypatch, "compare", *runs) == 0
    said = capsys.readouterr().out
    assert "all options are alike" in said
    assert said.endswith("wrote comparison.html\n")
    assert (tmp_path / "comparison.html").is_file()
    assert research(monkeypatch, "compare", *runs, "--json") == 0
    assert json.loads(capsys.readouterr().out)["labels"] == ["a", "b"]
    assert research(monkeypatch, "compare", runs[0]) == 2
    assert "two runs or more" in capsys.readouterr().err


def test_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead(tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    assert research(monkeypatch, "runs") == 0
    assert "mine  stopped  6/50" in capsys.readouterr().out
    assert research(monkeypatch, "runs", ".", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "ill"
    (tmp_path / "empty").mkdir()
    assert research(monkeypatch, "runs", "empty") == 0
    assert "no run below empty" in capsys.readouterr().out


def test_they_do_not_wait_for_torch(tmp_path: Path) -> None:
    run = healthy(tmp_path / "run")
    code = (
        "import sys; from research_rl.trainers.cli import dispatch\n"
        "pages = ['page', '--quick', RUN], ['compare', RUN, RUN, '--out', OUT]\n"
        "for words in (*pages, ['runs', RUN]):\n"
        "    sys.argv = ['research', *words]; dispatch.main()\n"
        "print(*{'torch', 'pytorch_lightning', 'transformers'} & set(sys.modules))"
    )
    code = code.replace("RUN", repr(str(run))).replace("OUT", repr(str(tmp_path / "c.html")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
