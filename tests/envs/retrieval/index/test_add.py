"""Passages added to an index: only they are encoded, and the index is that of one build."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")

from doubles.numbered import Numbered, write_corpus  # noqa: E402

from research_rl.envs.retrieval import (  # noqa: E402
    DenseRetriever,
    Encoder,
    IndexFolderError,
    Storage,
    build_index,
    cli,
    extend_index,
    forget_retrievers,
    load_retriever,
    make_encoder,
)
from research_rl.envs.retrieval.index import adopt_index, read_manifest, tune_folder  # noqa: E402
from research_rl.envs.retrieval.index import open as open_module  # noqa: E402

OLD, NEW = 1500, 1520


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "c.jsonl", OLD)


@pytest.fixture(autouse=True)
def known_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str, **settings: Any) -> Encoder:
        return Numbered() if name == "numbered" else make_encoder(name, **settings)

    monkeypatch.setattr(open_module, "make_encoder", make)


def grow(corpus: Path, count: int = NEW) -> Path:
    """Append passages; what is there stays byte for byte."""
    before = corpus.read_bytes()
    write_corpus(corpus, count)
    assert corpus.read_bytes().startswith(before)
    return corpus


def found(
    folder: Path, queries: list[str], corpus: Path | None = None
) -> list[list[tuple[str, float]]]:
    rows = load_retriever(folder, corpus).search(queries, 5)
    return [[(p.id, round(p.score, 4)) for p in row] for row in rows]


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("index_type", ["flat", "sq8", "SQfp16"])
def test_only_what_is_new_is_encoded_and_codes_are_those_of_one_build(
    corpus: Path, tmp_path: Path, index_type: str, metric: Any
) -> None:
    storage = Storage(index_type, metric)
    folder = build_index(corpus, tmp_path / "i", encoder=Numbered(), storage=storage)
    before = (folder / "vectors.faiss").read_bytes()
    grow(corpus)
    encoder, said = Numbered(), []
    assert extend_index(folder, encoder=encoder, report=said.append) == folder
    again = 0 if index_type == "flat" else OLD  # the nearest of the sampled queries
    assert NEW - OLD <= encoder.encoded <= NEW - OLD + again
    after = (folder / "vectors.faiss").read_bytes()
    if index_type == "flat":  # nothing is learned from a corpus
        whole = build_index(corpus, tmp_path / "whole", encoder=Numbered(), storage=storage)
        for name in ("vectors.faiss", "offsets.npy"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes()
    code = faiss.read_index(str(folder / "vectors.faiss")).code_size
    assert after[-NEW * code : (OLD - NEW) * code] == before[-OLD * code :]
    manifest = read_manifest(folder)
    assert manifest["corpus"]["count"] == NEW
    assert manifest["index"]["type"] == read_manifest(folder)["index"]["type"]
    queries = [str(n) for n in (0, OLD - 1, OLD, NEW - 1)]
    assert [row[0][0] for row in found(folder, queries)] == queries
    assert f"{NEW - OLD} passages are encoded" in said[0]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("index_type", ["IVF16,Flat", "IVF16,SQ8", "HNSW16", "PCA24,IVF16,Flat"])
def test_lists_and_graphs_take_them_in_and_recall_is_measured_again(
    corpus: Path, tmp_path: Path, index_type: str
) -> None:
    folder = build_index(
        corpus, tmp_path / "i", encoder=Numbered(), storage=Storage(index_type, recall=0.9)
    )
    width = read_manifest(folder)["index"]
    grow(corpus)
    said: list[str] = []
    extend_index(folder, encoder=Numbered(), report=said.append)
    manifest = read_manifest(folder)
    name = "efSearch" if "HNSW" in index_type else "nprobe"
    assert manifest["index"][name] == width[name]
    assert manifest["recall"]["recall"] > (0.5 if "PCA" in index_type else 0.8)
    assert "recall@5" in said[-1]
    sample = np.load(folder / "sample.npz")
    table = Numbered()._table[:NEW]
    exact = np.argsort(-(sample["queries"] @ table.T), axis=1, kind="stable")[:, :5]
    assert [set(row) for row in exact] == [set(row[:5]) for row in sample["nearest"]]
    queries = [str(n) for n in range(OLD, NEW)]
    first = [row[0][0] for row in found(folder, queries)]
    assert np.mean([one == query for one, query in zip(first, queries, strict=True)]) > 0.9


def test_an_index_that_has_doubled_says_that_its_lists_are_old(
    corpus: Path, tmp_path: Path
) -> None:
    folder = build_index(corpus, tmp_path / "i", encoder=Numbered(), storage=Storage("IVF8,Flat"))
    for count, warned in ((2000, False), (3001, True)):
        said: list[str] = []
        extend_index(folder, grow(corpus, count), encoder=Numbered(), report=said.append)
        assert any("lists were found for 1500" in line for line in said) is warned
    assert read_manifest(folder)["index"]["learned_from"] == OLD


@pytest.mark.parametrize("kind", ["dense", "bm25", "hybrid"])
def test_kinds_that_count_words_are_those_of_one_build(tmp_path: Path, kind: str) -> None:
    if kind != "dense":
        pytest.importorskip("bm25s")
    forget_retrievers()
    corpus = tmp_path / "c.jsonl"
    rows = [{"id": f"p{i}", "contents": f'"Town {i % 7}"\nriver{i % 5} hill{i}'} for i in range(60)]
    lines = [json.dumps(row) + "\n" for row in rows]
    corpus.write_text("".join(lines[:40]))
    options = {"k1": 1.1} if kind == "bm25" else {"dim": 256, "k1": 1.1}
    folder = build_index(corpus, tmp_path / "i", kind=kind, copy_corpus=True, **options)
    grown = tmp_path / "grown.jsonl"
    grown.write_text("".join(lines))
    extend_index(folder, grown)
    whole = build_index(grown, tmp_path / "w", kind=kind, copy_corpus=True, **options)
    for file in sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file()):
        if file.name != "manifest.json":
            assert (folder / file).read_bytes() == (whole / file).read_bytes(), file
    ours, theirs = read_manifest(folder), read_manifest(whole)
    for times in ("mtime_ns", "mark"):
        ours["corpus"].pop(times), theirs["corpus"].pop(times)
    assert ours == theirs
    assert (folder / "corpus.jsonl").read_text() == grown.read_text()


def test_a_hybrid_of_a_model_encodes_what_is_new_and_counts_all(
    corpus: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bm25s")
    folder = build_index(corpus, tmp_path / "i", kind="hybrid", encoder=Numbered())
    encoder = Numbered()
    extend_index(folder, grow(corpus), encoder=encoder)
    assert encoder.encoded == NEW - OLD
    assert found(folder, [str(NEW - 1)])[0][0][0] == str(NEW - 1)
    assert load_retriever(folder).retrievers[1].model.scores["num_docs"] == NEW  # type: ignore[attr-defined]


def test_an_adopted_index_grows_into_its_folder_and_the_other_file_stays(
    corpus: Path, tmp_path: Path
) -> None:
    index = faiss.index_factory(32, "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    table = Numbered()._table[:OLD]
    index.train(table)
    index.add(table)
    faiss.write_index(index, str(tmp_path / "theirs.index"))
    theirs = (tmp_path / "theirs.index").read_bytes()
    adopt_index(tmp_path / "theirs.index", corpus, Numbered(), tmp_path / "i", nprobe=16)
    extend_index(tmp_path / "i", grow(corpus), encoder=Numbered())
    manifest = read_manifest(tmp_path / "i")
    assert "file" not in manifest["index"]
    assert manifest["recall"]["against"] == "the index's own vectors"
    assert found(tmp_path / "i", [str(NEW - 1)])[0][0][0] == str(NEW - 1)
    assert (tmp_path / "theirs.index").read_bytes() == theirs
    assert tune_folder(tmp_path / "i")["against"] == "the index's own vectors"


def test_an_index_with_ids_of_its_own_is_refused(corpus: Path, tmp_path: Path) -> None:
    index = faiss.IndexIDMap(faiss.IndexFlatIP(32))
    index.add_with_ids(Numbered()._table[:OLD], np.arange(OLD)[::-1].copy())
    faiss.write_index(index, str(tmp_path / "f"))
    rows = corpus.read_text().splitlines(keepends=True)
    corpus.write_text("".join(reversed(rows)))
    adopt_index(tmp_path / "f", corpus, Numbered(), tmp_path / "i")
    corpus.write_text(corpus.read_text() + '{"id": "more", "contents": "7 again"}\n')
    with pytest.raises(IndexFolderError, match="ids of its own; add the vectors where it was made"):
        extend_index(tmp_path / "i", encoder=Numbered())


def test_what_does_not_begin_with_the_old_corpus_is_refused(corpus: Path, tmp_path: Path) -> None:
    folder = build_index(corpus, tmp_path / "i", encoder=Numbered())
    said: list[str] = []
    extend_index(folder, encoder=Numbered(), report=said.append)
    assert "nothing to add" in said[0]
    text = corpus.read_text()
    for wrong in (text[: len(text) // 2], text.replace("7 is", "8 is") + '{"id":"x","text":"a"}\n'):
        corpus.write_text(wrong)
        with pytest.raises(IndexFolderError, match="must begin with the 1500 passages"):
            extend_index(folder, encoder=Numbered())
    corpus.write_text(text.rstrip("\n") + " \n" + '{"id": "more", "contents": "7"}\n')
    with pytest.raises(IndexFolderError, match="byte for byte"):
        extend_index(folder, encoder=Numbered())
    corpus.write_text(text + text.splitlines()[3] + "\n")
    with pytest.raises(ValueError, match=r"c.jsonl:1501: id '3' is already used in line 4"):
        extend_index(folder, encoder=Numbered())
    corpus.write_text(text)
    assert len(found(folder, ["7"])[0]) == 5


def test_a_corpus_that_only_grew_names_the_command(corpus: Path, tmp_path: Path) -> None:
    folder = build_index(corpus, tmp_path / "i", encoder=Numbered())
    with pytest.raises(
        IndexFolderError, match=r"only grew.*research index add .*/i --corpus .*c.j"
    ):
        load_retriever(folder, grow(corpus))


def test_an_interrupted_build_is_known_by_content_and_not_by_its_age(
    corpus: Path, tmp_path: Path
) -> None:
    """The corpus is copied, touched and lies elsewhere: the build goes on."""

    class Stops(Numbered):
        def encode_passages(self, texts: Any) -> Any:
            if self.encoded:
                raise OSError(28, "No space left on device")
            return super().encode_passages(texts)

    write_corpus(corpus, 5000)
    with pytest.raises(OSError, match="No space left"):
        build_index(corpus, tmp_path / "i", encoder=Stops())
    moved = tmp_path / "elsewhere" / "d.jsonl"
    moved.parent.mkdir()
    shutil.copyfile(corpus, moved)
    os.utime(moved, ns=(0, 1))
    encoder = Numbered()
    build_index(moved, tmp_path / "i", encoder=encoder)
    assert encoder.encoded == 5000 - 4096
    with pytest.raises(OSError, match="No space left"):
        build_index(corpus, tmp_path / "j", encoder=Stops())
    stamp = corpus.stat()
    corpus.write_text(corpus.read_text().replace("7 is", "8 is"))
    os.utime(corpus, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the same size and time
    encoder = Numbered()
    build_index(corpus, tmp_path / "j", encoder=encoder)
    assert encoder.encoded == 5000


def test_the_command_adds_rows_of_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "wiki.tsv"
    head = "id\ttext\ttitle\n1\toslo lies in norway\tOslo\n2\tlima lies in peru\tLima\n"
    table.write_text(head)
    cli.main(["build", "--corpus", str(table), "--out", str(tmp_path / "i"), "--quiet"])
    table.write_text(head + "3\tcairo lies in egypt\tCairo\n")
    cli.main(["add", str(tmp_path / "i"), "--corpus", str(table)])
    assert "3 passages" in capsys.readouterr().out
    cli.main(["search", str(tmp_path / "i"), "egypt", "--json"])
    assert json.loads(capsys.readouterr().out)["passages"][0]["id"] == "3"
    cli.main(["add", str(tmp_path / "i"), "--corpus", str(table)])
    assert "nothing to add" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["add", str(tmp_path / "nowhere")])
    assert "index folder" in capsys.readouterr().err


KILLED = """
import sys, time
from doubles.numbered import Numbered
from research_rl.envs.retrieval import extend_index
from research_rl.envs.retrieval.index import add
encoder = Numbered()
encoder.encode_passages = lambda texts: (time.sleep(0.03), encoder.encode_queries(texts))[1]
for name in ("append_vectors", "move_into_place", "judge", "open_corpus"):
    def slow(*args, do=getattr(add, name)):
        time.sleep(0.03)
        return do(*args), time.sleep(0.03)
    setattr(add, name, lambda *args, slow=slow: slow(*args)[0])
sys.stdout.write("ready\\n"); sys.stdout.flush()
extend_index(sys.argv[1], sys.argv[2], encoder=encoder)
"""


@pytest.mark.slow
def test_it_survives_being_killed_at_ten_random_moments(corpus: Path, tmp_path: Path) -> None:
    """After each kill the folder opens as the old index or the new one; in the end it is whole."""
    folder = build_index(corpus, tmp_path / "i", encoder=Numbered(), storage=Storage("sq8"))
    kept, whole = tmp_path / "kept", tmp_path / "whole"
    shutil.copytree(folder, kept)
    shutil.copytree(folder, whole)
    grown = write_corpus(tmp_path / "grown.jsonl", 6000)
    extend_index(whole, grown, encoder=Numbered())
    rng, counts = random.Random(0), []
    for _ in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(folder), str(grown)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.7))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        forget_retrievers()
        if not folder.exists():  # killed between two names; opening puts the old one back
            open_module.put_back_replaced(folder)
        counts.append(read_manifest(folder)["corpus"]["count"])
        load_retriever(folder, grown if counts[-1] == 6000 else corpus)
        assert found(folder, ["7"], grown if counts[-1] == 6000 else corpus)[0][0][0] == "7"
        if counts[-1] == 6000:  # it had ended: begin anew
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
    assert OLD in counts
    extend_index(folder, grown, encoder=Numbered())
    for name in ("vectors.faiss", "offsets.npy"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert {p.name for p in folder.iterdir()} == {p.name for p in whole.iterdir()}
    assert not list(tmp_path.glob(".*"))


def test_a_crash_between_two_names_leaves_the_old_index(corpus: Path, tmp_path: Path) -> None:
    folder = build_index(corpus, tmp_path / "i", encoder=Numbered())
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == folder:
            raise OSError("killed")
        return replace(self, target)

    grow(corpus)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(OSError, match="killed"):
            extend_index(folder, encoder=Numbered())
        assert not folder.exists()
    text = corpus.read_text()
    corpus.write_text("".join(text.splitlines(keepends=True)[:OLD]))
    retriever = load_retriever(folder)
    assert isinstance(retriever, DenseRetriever)
    assert len(retriever) == OLD
    corpus.write_text(text)
    encoder = Numbered()
    extend_index(folder, encoder=encoder)
    assert encoder.encoded == 0
    assert found(folder, [str(NEW - 1)])[0][0][0] == str(NEW - 1)
    assert not list(tmp_path.glob(".*"))
