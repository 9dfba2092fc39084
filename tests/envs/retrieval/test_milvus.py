"""An index in Milvus, kept by milvus-lite: built, searched, killed and searched again.

These tests need the extra ``milvus`` and are skipped without it.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.numbered import Numbered, write_corpus

from research_rl.envs.retrieval import (
    BM25SketchEncoder,
    CorpusError,
    DenseRetriever,
    IndexFolderError,
    MilvusRetriever,
    build_index,
    build_milvus,
    cli,
    extend_index,
    forget_retrievers,
    load_retriever,
)
from research_rl.envs.retrieval.index import open as open_module
from research_rl.envs.retrieval.index import read_manifest
from research_rl.envs.retrieval.search import milvus as milvus_module
from research_rl.envs.types import Passage, RetrieverUnavailable

needs_milvus = pytest.mark.skipif(
    not (milvus_module.is_installed()), reason="needs the extra milvus: pymilvus, milvus-lite"
)
ROWS = [
    {"id": "oslo", "contents": '"Oslo"\nOslo is the capital of Norway.'},
    {"id": "lima", "contents": '"Lima"\nLima is the capital of Peru.'},
    {"id": "empty", "contents": " "},
    {"id": "tokyo", "contents": '"東京"\n日本の首都は東京である。'},
    {"id": "thai", "contents": '"กรุงเทพ"\nเมืองหลวงของประเทศไทย'},
    {"id": "cairo", "contents": '"Cairo"\nCairo, a city of Egypt.'},
]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Let go of the folders of milvus-lite, which one process may hold."""
    yield
    forget_retrievers()
    if milvus_module.is_installed():
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_all()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


def ids(rows: list[list[Passage]]) -> list[list[str]]:
    return [[passage.id for passage in row] for row in rows]


@needs_milvus
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_vectors_in_milvus_find_what_a_flat_index_finds(
    corpus: Path, tmp_path: Path, metric: Any
) -> None:
    folder = build_milvus(corpus, tmp_path / "m", dim=256, metric=metric)
    memory = DenseRetriever.from_passages(
        [Passage(r["id"], r["contents"]) for r in ROWS], BM25SketchEncoder(dim=256), metric
    )
    corpus.unlink()  # passages lie in the collection
    retriever = load_retriever(folder)
    queries = ["capital of Peru", "首都", "Oslo city", "nothing known", ""]
    found, wanted = retriever.search(queries, 3), memory.search(queries, 3)
    if metric == "ip":
        assert ids(found) == ids(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            assert [p.contents for p in ours] == [p.contents for p in theirs]
            assert [p.score for p in ours] == pytest.approx([p.score for p in theirs], rel=1e-4)
    else:
        assert ids(found)[:3] == ids(wanted)[:3]
    assert [retriever.search([query], 3)[0] for query in queries] == found
    again = pickle.loads(pickle.dumps(retriever))
    assert again is retriever
    manifest = read_manifest(folder)
    assert manifest["kind"] == "milvus"
    assert manifest["corpus"]["count"] == len(retriever) == 6  # type: ignore[arg-type]
    assert manifest["milvus"]["uri"] == "milvus.db"


@needs_milvus
def test_words_in_milvus_are_ours_in_every_script(corpus: Path, tmp_path: Path) -> None:
    folder = build_milvus(corpus, tmp_path / "m", search="bm25", k1=1.2)
    assert "encoder" not in read_manifest(folder)
    assert read_manifest(folder)["bm25"]["k1"] == 1.2
    retriever = MilvusRetriever(str(folder))
    queries = ["egypts", "首都", "ประเทศไทย", "ＯＳＬＯ", "nothing known", "..."]
    assert ids(retriever.search(queries, 1)) == [["cairo"], ["tokyo"], ["thai"], ["oslo"], [], []]
    assert all(p.score > 0 for row in retriever.search(queries, 5) for p in row)
    with pytest.raises(IndexFolderError, match="was made to be searched by bm25, got 'dense'"):
        MilvusRetriever(str(folder), search="dense")


@needs_milvus
def test_a_hybrid_is_searched_in_each_of_its_ways(corpus: Path, tmp_path: Path) -> None:
    folder = build_milvus(corpus, tmp_path / "m", search="hybrid", dim=256)
    for by in ("hybrid", "dense", "bm25", None):
        retriever = MilvusRetriever(str(folder), search=by)  # type: ignore[arg-type]
        assert ids(retriever.search(["capital of Peru", "Egypt"], 1)) == [["lima"], ["cairo"]]
        assert retriever.search(["zebra"], 3) == [[]]
        assert ids(pickle.loads(pickle.dumps(retriever)).search(["Egypt"], 1)) == [["cairo"]]


@needs_milvus
@pytest.mark.parametrize("index_type", ["ivf", "ivf-sq8", "hnsw", "AUTOINDEX"])
def test_types_of_milvus(tmp_path: Path, index_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_module, "make_encoder", lambda *_, **__: Numbered())
    corpus = write_corpus(tmp_path / "c.jsonl", 300)
    folder = build_milvus(corpus, tmp_path / "m", Numbered(), index_type=index_type)
    queries = [str(n) for n in range(0, 300, 7)]
    found = load_retriever(folder).search(queries, 2)
    assert sum(r[0].id == q for r, q in zip(found, queries, strict=True)) > 0.9 * len(queries)
    width = read_manifest(folder)["milvus"]["width"]
    assert set(width) == {"ivf": {"nprobe"}, "ivf-sq8": {"nprobe"}, "hnsw": {"ef"}}.get(
        index_type, set()
    )


FILLING = """
import sys, time
from doubles.numbered import Numbered
from research_rl.envs.retrieval.index import milvus
encoder = Numbered(pause=float(sys.argv[3]))
milvus.BLOCK = 100
milvus.build_milvus(sys.argv[1], sys.argv[2], encoder)
print("built", flush=True)
retriever = milvus.read_manifest(sys.argv[2])
from research_rl.envs.retrieval.index import open
open.make_encoder = lambda *_, **__: encoder
print(open.load_retriever(sys.argv[2]).search(["7"], 1)[0][0].id, flush=True)
time.sleep(60)
"""


@needs_milvus
def test_it_is_killed_while_it_is_filled_and_while_it_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_module, "make_encoder", lambda *_, **__: Numbered())
    monkeypatch.setattr("research_rl.envs.retrieval.index.milvus.BLOCK", 100)
    corpus, out = write_corpus(tmp_path / "c.jsonl", 500), tmp_path / "m"
    process = started(corpus, out, 0.6)
    database = tmp_path / ".m.building" / "milvus.db"
    while not database.exists():
        assert process.poll() is None
    with pytest.raises(FileExistsError, match="place of another build"):
        build_milvus(corpus, out, Numbered())
    import time

    time.sleep(1.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    encoder = Numbered()
    build_milvus(corpus, out, encoder)
    assert encoder.encoded < 500, "what Milvus has is not encoded again"
    assert ids(load_retriever(out).search(["0", "499", "250"], 1)) == [["0"], ["499"], ["250"]]
    close(load_retriever(out))
    other = started(corpus, tmp_path / "n", 0.0)
    assert other.stdout is not None
    assert [other.stdout.readline() for _ in range(2)] == ["built\n", "7\n"]
    with pytest.raises(RetrieverUnavailable, match="milvus-lite lets one process in"):
        MilvusRetriever(str(tmp_path / "n"), attempts=1)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert ids(load_retriever(tmp_path / "n").search(["0", "499"], 1)) == [["0"], ["499"]]


def started(corpus: Path, out: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FILLING, str(corpus), str(out), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def close(retriever: Any) -> None:
    retriever.close()
    forget_retrievers()


@needs_milvus
def test_a_collection_that_is_gone_or_another_is_said(corpus: Path, tmp_path: Path) -> None:
    folder = build_milvus(corpus, tmp_path / "m", dim=64)
    retriever = MilvusRetriever(str(folder), attempts=1)
    place = retriever.collection
    place.ask("a removal", lambda c: c.delete(place.name, ids=[1]))
    with pytest.raises(IndexFolderError, match=r"with 6 passages of corpus .*, got 5 passages"):
        MilvusRetriever(str(folder), attempts=1)
    place.ask("a removal", lambda c: c.drop_collection(place.name))
    with pytest.raises(RetrieverUnavailable, match=r"asked once for a search of 1 queries and fai"):
        retriever.search(["capital"], 1)
    with pytest.raises(IndexFolderError, match=r"must find its collection research_m_.*got none"):
        MilvusRetriever(str(folder))
    with pytest.raises(IndexFolderError, match="must be of kind milvus, got 'dense'"):
        MilvusRetriever(str(build_index(corpus, tmp_path / "d", dim=64)))
    close(retriever)


@needs_milvus
def test_a_cluster_that_does_not_answer_is_unavailable(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_module, "_PAUSE", 0.01)
    folder = build_milvus(corpus, tmp_path / "m", dim=64)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    said = rf"Milvus at {uri} was asked 2 times for its passport and failed: "
    with pytest.raises(RetrieverUnavailable, match=said):
        MilvusRetriever(str(folder), uri=uri, timeout=0.5, attempts=2)
    with pytest.raises(RetrieverUnavailable, match="for its passport"):
        build_milvus(corpus, tmp_path / "n", uri=uri, timeout=0.5, dim=64)


@needs_milvus
def test_it_comes_back_after_its_server_ended(corpus: Path, tmp_path: Path) -> None:
    retriever = MilvusRetriever(str(build_milvus(corpus, tmp_path / "m", dim=64)), cache_size=0)
    first = retriever.search(["Egypt"], 1)
    retriever.close()
    assert retriever.search(["Egypt"], 1) == first


@needs_milvus
def test_what_cannot_be_is_refused_before_the_work(corpus: Path, tmp_path: Path) -> None:
    for options, said in (
        ({"search": "both"}, "search must be dense, bm25 or hybrid"),
        ({"metric": "cos"}, "metric must be one of"),
        ({"index_type": "iff"}, "type must be one of flat"),
        ({"nprobe": 3}, "nprobe must be at least 1 and go with an ivf type"),
        ({"ef_search": 0, "index_type": "hnsw"}, "ef_search must be at least 1"),
        ({"search": "bm25", "dim": 8}, "keeps no vectors"),
    ):
        with pytest.raises(ValueError, match=said):
            build_milvus(corpus, tmp_path / "m", **options)  # type: ignore[arg-type]
    with pytest.raises(CorpusError, match="no such corpus"):
        build_milvus(tmp_path / "none.jsonl", tmp_path / "m")
    with pytest.raises(ValueError, match="build_milvus"):
        build_index(corpus, tmp_path / "m", kind="milvus")
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"id": "x", "text": "é" * 40_000}) + "\n")
    with pytest.raises(ValueError, match="contents of a passage must have at most 65535 bytes"):
        build_milvus(long, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@needs_milvus
def test_the_command_builds_replaces_and_searches(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "m")
    build = ["build", "--kind", "milvus", "--corpus", str(corpus), "--out", out, "--search"]
    cli.main([*build, "hybrid", "--dim", "64"])
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{out}: 6 passages, ")
    assert f"6 passages go to Milvus at {out}, collection research_m_" in captured.err
    cli.main(["search", out, "Egypt", "--top-k", "1"])
    assert "1. [cairo]" in capsys.readouterr().out
    close(load_retriever(out))
    cli.main([*build, "bm25", "--overwrite", "--quiet"])
    cli.main(["search", out, "Norway", "--top-k", "1"])
    assert "1. [oslo]" in capsys.readouterr().out
    with pytest.raises(IndexFolderError, match="where add does not work"):
        extend_index(out, corpus)
    for wrong in (["--shard", "0/2"], ["--copy-corpus"]):
        with pytest.raises(SystemExit):
            cli.main([*build, "dense", "--overwrite", *wrong])
        assert "must not be given with --kind milvus" in capsys.readouterr().err


def test_options_of_milvus_go_with_it_alone(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["build", "--corpus", str(corpus), "--out", str(tmp_path / "i"), "--uri", "x"])
    assert "--uri must go with --kind milvus" in capsys.readouterr().err


def test_a_missing_package_names_its_extra(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[milvus\]'"):
        build_milvus(corpus, tmp_path / "m")
    assert not os.listdir(tmp_path) or os.listdir(tmp_path) == ["c.jsonl"]


def test_words_are_kept_apart_by_any_analyzer() -> None:
    written = milvus_module.milvus_words('"Oslo"\nthe cities 首都', title_weight=2)
    assert written == "oslo the city ue9a696e983bd oslo"
    assert written.isascii()
