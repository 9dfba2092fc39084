"""Indexes that others made are taken over by position, after a look at whether they fit."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")

from doubles.numbered import DIM, Numbered, write_corpus  # noqa: E402

from research_rl.envs.questions import BadRows  # noqa: E402
from research_rl.envs.retrieval import IndexFolderError, load_retriever  # noqa: E402
from research_rl.envs.retrieval.corpus.corpus import Corpus, CorpusError  # noqa: E402
from research_rl.envs.retrieval.corpus.hub import local_corpus, write_rows  # noqa: E402
from research_rl.envs.retrieval.index.adopt import adopt_index  # noqa: E402
from research_rl.envs.retrieval.index.manifest import read_manifest  # noqa: E402
from research_rl.envs.retrieval.index.recall import tune_folder  # noqa: E402


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
    kept = {"manifest.json", "offsets.npy"} | ({"sample.npz"} if factory != "Flat" else set())
    assert {p.name for p in folder.iterdir()} == kept


@pytest.mark.parametrize("factory", ["IVF16,SQ8", "HNSW4", "PCA16,HNSW4"])
def test_an_adopted_index_is_tuned_against_its_own_vectors(
    tmp_path: Path, corpus: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adopt_index(others(corpus, factory), corpus, Numbered(), tmp_path / "i")
    monkeypatch.setattr(
        "research_rl.envs.retrieval.index.open.make_encoder", lambda name, **options: Numbered()
    )
    (folder / "sample.npz").unlink()  # a folder of before one was kept
    moved = corpus.rename(tmp_path / "moved.jsonl")
    with pytest.raises(IndexFolderError, match="--corpus"):
        tune_folder(folder)
    narrow, wide = tune_folder(folder, 0.5, moved), tune_folder(folder, 0.999)
    assert wide["against"] == "the index's own vectors"
    assert 0.5 <= narrow["recall"] <= wide["recall"]
    assert wide["recall"] > 0.99
    assert read_manifest(folder)["recall"] == wide


@pytest.mark.parametrize("factory", ["PCA16,IVF16,SQ8,RFlat", "PCA16,HNSW4,RFlat"])
def test_an_index_that_scores_again_is_adopted(tmp_path: Path, corpus: Path, factory: str) -> None:
    folder = adopt_index(others(corpus, factory), corpus, Numbered(), tmp_path / "i")
    assert 0 < read_manifest(folder)["recall"]["recall"] <= 1


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


def with_ids(path: Path, factory: str, ids: Sequence[int], texts: Sequence[int]) -> Path:
    """Make an index whose vectors have ids of their own: vector i is that of ``texts[i]``."""
    vectors = Numbered().encode_passages([str(i) for i in texts])
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add_with_ids(vectors, np.asarray(ids, np.int64))
    faiss.write_index(index, str(path))
    return path


def finds_itself(
    folder: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, wide: int = 300
) -> None:
    monkeypatch.setattr(
        "research_rl.envs.retrieval.index.open.make_encoder", lambda name, **options: Numbered()
    )
    wanted = [p for p in Corpus(corpus) if int(p.contents.split()[0]) % 50 == 0]
    queries = [p.contents for p in wanted]
    for mmap in (False, True):
        found = load_retriever(folder, mmap=mmap).search(queries, wide)
        assert [row[0].id for row in found] == [p.id for p in wanted]
        assert len(found[0]) == wide, "also where few lists hold too few"


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap2,Flat", "IDMap,IVF8,Flat", "IVF8,Flat"])
def test_ids_that_are_rows_are_taken_as_rows(
    tmp_path: Path, corpus: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backwards = range(599, -1, -1)
    file = with_ids(tmp_path / "o.index", factory, backwards, backwards)
    folder = adopt_index(file, corpus, Numbered(), tmp_path / "i", nprobe=nprobe_of(factory))
    finds_itself(folder, corpus, monkeypatch)


def nprobe_of(factory: str) -> int | None:
    return 2 if "IVF" in factory else None


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap,HNSW16", "IDMap,IVF8,SQ8"])
def test_ids_of_the_corpus_are_matched_with_its_rows(
    tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "wiki.jsonl"
    rows = [{"id": str(7000 + 3 * i), "contents": f"{i} is the number"} for i in range(600)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    order = [(i * 7) % 600 for i in range(600)]
    ids = [7000 + 3 * i for i in order]
    file = with_ids(tmp_path / "o.index", factory, ids, order)
    folder = adopt_index(file, corpus, Numbered(), tmp_path / "i", nprobe=nprobe_of(factory))
    finds_itself(folder, corpus, monkeypatch, 5 if "HNSW" in factory else 300)
    tuned = factory == "IDMap,Flat" or tune_folder(folder, 0.99)["recall"] >= 0.99
    assert tuned


def test_ids_that_may_be_rows_and_are_those_of_the_corpus_are_told_by_the_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "wiki.jsonl"
    rows = [{"id": (i * 7) % 600, "contents": f"{i} is the number"} for i in range(600)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    order = range(599, -1, -1)
    for factory in ("IDMap,Flat", "IVF8,Flat"):
        ids = [(i * 7) % 600 for i in order]
        file = with_ids(tmp_path / "o.index", factory, ids, order)
        folder = adopt_index(file, corpus, Numbered(), tmp_path / f"i{factory}", nprobe=None)
        finds_itself(folder, corpus, monkeypatch)


@pytest.mark.parametrize(
    ("factory", "shift", "words"),
    [
        ("IDMap,Flat", 5000, "must be the rows .* or the ids of its passages, got 5000"),
        ("IVF8,Flat", 5000, "ids must be the rows .* got"),
        ("PCA16,IDMap,Flat", 0, "an id map must be the outermost part"),
    ],
)
def test_ids_that_cannot_be_matched_are_refused(
    tmp_path: Path, corpus: Path, factory: str, shift: int, words: str
) -> None:
    file = with_ids(tmp_path / "o.index", factory, range(shift, shift + 600), range(600))
    with pytest.raises(IndexFolderError, match=words):
        adopt_index(file, corpus, Numbered(), tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_an_adopted_index_says_how_much_it_finds(tmp_path: Path, corpus: Path) -> None:
    said: list[str] = []
    out = tmp_path / "i"
    adopt_index(others(corpus, "IVF64,Flat"), corpus, Numbered(), out, report=said.append)
    assert said[-1].startswith("WARNING: recall@5 0."), said
    assert "with nprobe 1" in said[-1]
    assert f"research index tune {out}" in said[-1]
    known = read_manifest(out)["recall"]
    assert known["against"] == "the index's own vectors"
    assert known["recall"] < 0.9
    adopt_index(
        *(others(corpus, "IVF8,Flat"), corpus, Numbered(), tmp_path / "j"),
        nprobe=8,
        report=said.append,
    )
    assert said[-1].startswith("recall@5 1.000 with nprobe 8"), said


def test_what_does_not_fit_is_said(tmp_path: Path, corpus: Path) -> None:
    said: list[str] = []
    one_off = others(corpus, shift=1)
    with pytest.raises(IndexFolderError, match="0 of 32 passages encoded again find themselves"):
        adopt_index(one_off, corpus, Numbered(), tmp_path / "i")
    adopt_index(one_off, corpus, Numbered(), tmp_path / "i", report=said.append, checked=False)
    assert said[0].startswith("WARNING: 0 of 32 passages encoded again find themselves")
    assert len(said) == 1
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
    write_rows(enumerate(rows, 1), target, BadRows())
    assert [(p.id, p.contents) for p in Corpus(target)] == [("0", '"Oslo"\nA city.'), ("x", "y")]
    assert [p.name for p in target.parent.iterdir()] == ["c.jsonl"]
    with pytest.raises(CorpusError, match=r"must have a column contents or text, .*\['said'\]"):
        write_rows([(1, {"said": "x"})], tmp_path / "d.jsonl", BadRows())
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
