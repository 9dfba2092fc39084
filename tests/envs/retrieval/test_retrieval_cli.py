"""``research index``: what it prints, and one line with status 2 for what the user can mend."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("faiss")
pytest.importorskip("bm25s")

from research_rl.envs.retrieval.cli import main


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    facts = {"oslo": "Norway", "paris": "France", "lima": "Peru \ud83d\ude80 caf\u00e9"}
    rows = [json.dumps({"id": c, "contents": f"{c}\nin {land}"}) for c, land in facts.items()]
    path.write_text("\n".join(rows))
    return path


def test_build_search_info(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "index")
    main(["build", "--corpus", str(corpus), "--out", out, "--kind", "dense", "--dim", "64"])
    printed = capsys.readouterr().out
    assert re.fullmatch(rf"{re.escape(out)}: 3 passages x 64, [\d.]+ kB, [\d.]+ s\n", printed)
    main(["search", out, "Peru", "France", "--top-k", "1"])
    printed = capsys.readouterr().out
    assert "# Peru\n1. [lima]" in printed
    assert "# France\n1. [paris]" in printed
    main(["search", out, "Peru", "--json", "--top-k", "2"])
    row = json.loads(capsys.readouterr().out)
    assert [p["id"] for p in row["passages"]] == ["lima"], "others share no word"
    main(["search", out, "zebra"])
    assert capsys.readouterr().out == "# zebra\nno passage found\n\n"
    main(["info", out, "--check"])
    assert json.loads(capsys.readouterr().out)["corpus"]["count"] == 3


def test_shards_types_and_tuning(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part, out = str(tmp_path / "part"), str(tmp_path / "index")
    given = ["--corpus", str(corpus), "--dim", "64"]
    main(["build", *given, "--out", part, "--shard", "0/1", "--metric", "l2"])
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{part}: one shard, ")
    assert "3 passages x 64 as Flat, about 1 s" in printed.err
    main(["merge", part, "--out", out, "--type", "hnsw"])
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["index"]["metric"] == "l2"
    assert "recall@3 1.000 with efSearch" in capsys.readouterr().err
    main(["tune", out, "--recall", "1"])
    assert capsys.readouterr().out.startswith(f"{out}: efSearch 1, recall@3 1.000")
    main(["search", out, "Peru", "--top-k", "1", "--mmap"])
    assert "1. [lima]" in capsys.readouterr().out
    main(["build", "--corpus", str(corpus), "--out", out, "--kind", "hybrid", "--overwrite"])
    assert capsys.readouterr().out.startswith(f"{out}: 3 passages x 2048, ")
    main(["search", out, "Peru", "--top-k", "1"])
    assert "1. [lima]" in capsys.readouterr().out


def test_what_the_user_can_mend_is_one_line_and_status_2(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": 1, "contents": "x"}\n{"id": 2}\n')
    out = str(tmp_path / "index")
    cases = {
        (
            "build",
            "--corpus",
            str(broken),
            "--out",
            out,
            "--strict",
        ): "broken.jsonl:2: contents must",
        ("build", "--corpus", "none.jsonl", "--out", out): "there is no such corpus file",
        (
            "serv",
            out,
        ): "no command 'serv' (known: build, add, merge, adopt, search, info, tune, serve); "
        "did you mean serve?",
        ("search", out, "Peru", "--top-k", "0"): "--top-k must be at least 1, got 0",
        ("search", out, " "): "a query must hold a word",
        ("build", "--corpus", str(corpus), "--out", out, "--kind", "dens"): "did you mean 'dense'",
        ("build", "--corpus", str(corpus), "--out", out, "--dim", "99"): "multiple of num_hashes",
        ("build", "--corpus", str(corpus), "--out", out, "--pooling", "cls"): "--pooling must not",
        ("build", "--corpus", str(corpus), "--out", str(tmp_path)): "new folder or an index",
        ("build", "--corpus", str(corpus), "--out", out, "--type", "iff"): "type must be one of",
        ("build", "--corpus", str(corpus), "--out", out, "--shard", "3"): "shard must be i/n",
        ("build", "--corpus", str(corpus), "--out", out, "--kind", "bm25", "--dim", "8"): "--dim",
        ("merge", out, "--out", out + "2"): "is no shard",
        ("tune", out): "make it: research index build",
        (
            "adopt",
            "--faiss",
            out,
            "--corpus",
            out,
            "--encoder",
            "x",
            "--out",
            out,
        ): "no such corpus",
        ("search", out, "Peru"): "make it: research index build",
        ("info", out): "make it: research index build",
    }
    for argv, words in cases.items():
        with pytest.raises(SystemExit) as caught:
            main(list(argv))
        printed = capsys.readouterr()
        assert caught.value.code == 2
        assert words in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""
    assert not Path(out).exists()


@pytest.mark.parametrize(
    "command", [[], ["build"], ["merge"], ["adopt"], ["tune"], ["search"], ["info"], ["serve"]]
)
def test_help_says_what_there_is(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: research index" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2


def test_nothing_in_a_passage_steers_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = "oslo\n\x1b]52;c;b3duZWQ=\x07 \x9b2J \u202egnp.exe \u2066x\u2028y"
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "o\x1b[2J", "contents": contents}) + "\n")
    out = str(tmp_path / "index")
    main(["build", "--corpus", str(corpus), "--out", out, "--kind", "bm25"])
    capsys.readouterr()
    main(["search", out, "oslo"])
    shown = capsys.readouterr().out
    assert not set("\x1b\x07\x9b\u202e\u2066\u2028") & set(shown)
    assert "o\u241b[2J" in shown
    main(["search", out, "oslo", "--json"])
    line = capsys.readouterr().out
    assert not set("\x1b\x07\x9b\u202e\u2066\u2028") & set(line)
    assert json.loads(line)["passages"][0]["contents"] == contents
