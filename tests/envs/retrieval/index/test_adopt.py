"""Indexes that others made are taken over by position, after a look at whether they fit."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")

from doubles.numbered import DIM, Numbered, write_corpus  # noqa: E402

from research_rl.envs.retrieval import IndexFolderError, load_retriever  # noqa: E402
from research_rl.envs.retrieval.corpus.corpus import Corpus, CorpusError  # noqa: E402
from research_rl.envs.retrieval.corpus.hub import local_corpus, write_rows  # noqa: E402
from research_rl.envs.retrieval.index.adopt import adopt_index  # noqa: E402
from research_rl.envs.retrieval.index.manifest import read_manifest  # noqa: E402
from research_rl.envs.retrieval.index.tuning import tune_folder  # noqa: E402


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "wiki.jsonl", 600)


def others(corpus: Path, factory: str = "Flat", shift: int = 0) -> Path:
    """Make an index as FlashRAG and Search-R1 do: vectors in the order of the corpus."""
    texts = [str((i + shift) % 600) for i in range(600)]
    vectors = Numbered().encode_passages(texts)
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    path = corpus.with_name(f"e5_{shift}.index")
    faiss.write_index(index, str(path))
    return path


@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8", "HNSW16"])
def test_it_finds_by_position_and_stays_where_it_is(
    tmp_path: Path, corpus: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    nprobe = 8 if "IVF" in factory else None
    file = others(corpus, factory)
    folder = adopt_index(
        file, corpus, Numbered(), tmp_path / "i", nprobe=nprobe, report=said.append
    )
    assert "median cosine 1.000" in said[0] or "median cosine 0.99" in said[0]
    monkeypatch.setattr(
        "research_rl.envs.retrieval.index.open.make_encoder", lambda name, **options: Numbered()
    )
    found = load_retriever(folder).search([str(i) for i in range(0, 600, 50)], 1)
    assert [row[0].id for row in found] == [str(i) for i in range(0, 600, 50)]
    manifest = read_manifest(folder)
    assert manifest["index"]["file"] == f"../{file.name}"
    assert manifest["index"].get("nprobe") == nprobe
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "offsets.npy"]


@pytest.mark.parametrize("factory", ["IVF16,SQ8", "HNSW4", "PCA16,HNSW4"])
def test_an_adopted_index_is_tuned_against_its_own_vectors(
    tmp_path: Path, corpus: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adopt_index(others(corpus, factory), corpus, Numbered(), tmp_path / "i")
    monkeypatch.setattr(
        "research_rl.envs.retrieval.index.open.make_encoder", lambda name, **options: Numbered()
    )
    moved = corpus.rename(tmp_path / "moved.jsonl")
    with pytest.raises(IndexFolderError, match="--corpus"):
        tune_folder(folder)
    narrow, wide = tune_folder(folder, 0.5, moved), tune_folder(folder, 0.999)
    assert wide["against"] == "the index's own vectors"
    assert 0.5 <= narrow["recall"] <= wide["recall"]
    assert wide["recall"] > 0.99
    assert read_manifest(folder)["recall"] == wide


def test_a_width_belongs_to_its_kind_of_index(tmp_path: Path, corpus: Path) -> None:
    ivf = others(corpus, "IVF8,Flat")
    with pytest.raises(ValueError, match="efSearch must go with an HNSW index, and this one has n"):
        adopt_index(ivf, corpus, Numbered(), tmp_path / "i", ef_search=4)
    folder = adopt_index(ivf, corpus, Numbered(), tmp_path / "i", nprobe=100)
    assert read_manifest(folder)["index"]["nprobe"] == 8, "there are no more lists"


def test_a_mismatch_names_the_way_to_adopt_it_again(tmp_path: Path, corpus: Path) -> None:
    moved = tmp_path / "my files"
    moved.mkdir()
    corpus = corpus.rename(moved / corpus.name)
    file = others(corpus, "IVF8,Flat")
    folder = adopt_index(file, corpus, Numbered(), moved / "i", nprobe=3)
    write_corpus(corpus, 599)
    with pytest.raises(IndexFolderError) as caught:
        load_retriever(folder)
    words = shlex.split(str(caught.value).partition("adopt it again: ")[2])
    assert words[:4] == ["research", "index", "adopt", "--faiss"]
    assert Path(words[4]).resolve() == file.resolve()
    assert words[5:] == [
        *("--corpus", str(corpus), "--out", str(folder), "--encoder", "numbered"),
        *("--nprobe", "3", "--overwrite"),
    ]


def test_what_does_not_fit_is_said(tmp_path: Path, corpus: Path) -> None:
    said: list[str] = []
    adopt_index(others(corpus, shift=1), corpus, Numbered(), tmp_path / "i", report=said.append)
    assert said[0].startswith("WARNING: 32 passages encoded again: median cosine")
    write_corpus(corpus, 599)
    with pytest.raises(IndexFolderError, match="got 600 vectors for 599 passages"):
        adopt_index(others(corpus), corpus, Numbered(), tmp_path / "j")
    write_corpus(corpus, 600)
    wide = faiss.IndexFlatIP(DIM + 1)
    wide.add(np.ones((600, DIM + 1), np.float32))
    faiss.write_index(wide, str(tmp_path / "wide.index"))
    with pytest.raises(IndexFolderError, match="must have the dimension of encoder numbered, 32"):
        adopt_index(tmp_path / "wide.index", corpus, Numbered(), tmp_path / "j")
    (tmp_path / "broken.index").write_bytes(b"no")
    for name, words in (("broken.index", "no index this FAISS can read"), ("none", "there is no")):
        with pytest.raises(IndexFolderError, match=words):
            adopt_index(tmp_path / name, corpus, Numbered(), tmp_path / "j")
    assert not (tmp_path / "j").exists()
    assert not list(tmp_path.glob(".*"))


def test_rows_of_a_data_set_become_a_corpus(tmp_path: Path) -> None:
    target = tmp_path / "out" / "c.jsonl"
    target.parent.mkdir()
    for left in (".c.jsonl.part", ".c.jsonl.77.partial"):
        (target.parent / left).touch()  # of one that was killed, in 0.1.0 and now
    rows = [{"title": "Oslo", "text": "A city."}, {"_id": "x", "contents": "y", "other": 3}]
    write_rows(rows, target)
    assert [(p.id, p.contents) for p in Corpus(target)] == [("0", '"Oslo"\nA city.'), ("x", "y")]
    assert [p.name for p in target.parent.iterdir()] == ["c.jsonl"]
    with pytest.raises(CorpusError, match=r"must have a column contents or text, got \['body'\]"):
        write_rows([{"body": "x"}], tmp_path / "d.jsonl")
    assert not list(tmp_path.glob("*d.jsonl*"))
    assert local_corpus(target, tmp_path / "i") == target
    assert local_corpus("data/wiki.jsonl", tmp_path / "i") == Path("data/wiki.jsonl")


def test_a_data_set_written_before_is_not_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> list[object]:
        asked.append((name, config, split, streaming))
        return [{"id": "1", "contents": f"of {name}"}]

    fake = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    out = tmp_path / "i"
    written = local_corpus("owner/wiki:en", out)
    assert [p.contents for p in Corpus(written)] == ["of owner/wiki"]
    assert local_corpus("owner/wiki:en", out) == written
    assert asked == [("owner/wiki", "en", "train", True)]
    for other in ("owner/news", "owner/wiki:de"):
        with pytest.raises(CorpusError, match=f"must hold {other}, got owner/wiki:en"):
            local_corpus(other, out)
    (tmp_path / "j.corpus.jsonl").write_text("mine")
    with pytest.raises(CorpusError, match="got a file of yours"):
        local_corpus("owner/wiki", tmp_path / "j")
    assert (tmp_path / "j.corpus.jsonl").read_text() == "mine"


def test_a_data_set_that_breaks_off_leaves_nothing_and_says_who_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"id": "1", "contents": "a"}
        raise ConnectionError("cut off")

    fake = SimpleNamespace(load_dataset=lambda *_names, **_options: rows())
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(CorpusError, match=r"owner/wiki: .*the Hub does not give it: cut off"):
        local_corpus("owner/wiki", tmp_path / "i")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file"):  # a disk that fails is not the Hub's fault
        local_corpus("owner/wiki", tmp_path / "file" / "i")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[data\]'"):
        local_corpus("owner/wiki", tmp_path / "i")
