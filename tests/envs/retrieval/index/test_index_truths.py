"""An index says what is so: of ties, of what cannot be, of its parts; and it loses no corpus."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")

from doubles.numbered import DIM, Numbered, write_corpus  # noqa: E402

from research_rl.envs.retrieval import (  # noqa: E402
    BM25Retriever,
    HybridRetriever,
    IndexFolderError,
    Storage,
    build_index,
    cli,
    load_retriever,
    merge_shards,
)
from research_rl.envs.retrieval.index import estimate  # noqa: E402
from research_rl.envs.retrieval.index import recall as recall_module  # noqa: E402
from research_rl.envs.retrieval.index.adopt import adopt_index  # noqa: E402
from research_rl.envs.retrieval.index.build_steps import store  # noqa: E402
from research_rl.envs.retrieval.index.manifest import read_manifest  # noqa: E402
from research_rl.envs.retrieval.index.recall import (  # noqa: E402
    Sample,
    tune_folder,
    with_ties,
)
from research_rl.envs.retrieval.search.bm25 import fit_bm25  # noqa: E402
from research_rl.envs.retrieval.torch_flat import TorchFlatRetriever  # noqa: E402
from research_rl.envs.retrieval.vectors.files import VectorFile, VectorParts  # noqa: E402
from research_rl.envs.types import Passage  # noqa: E402


def write_alike(path: Path, texts: int = 4, copies: int = 30) -> Path:
    """Write passages of which ``copies`` each have one text."""
    rows = (
        json.dumps({"id": str(i), "contents": f"colour{i % texts} house near stream{i % texts}"})
        for i in range(texts * copies)
    )
    path.write_text("\n".join(rows) + "\n")
    return path


def test_any_of_equal_neighbours_counts_as_found(tmp_path: Path) -> None:
    corpus = write_alike(tmp_path / "c.jsonl")
    build_index(corpus, tmp_path / "i", storage=Storage("ivf", nprobe=10_000), dim=64)
    assert read_manifest(tmp_path / "i")["recall"]["recall"] == 1.0
    assert tune_folder(tmp_path / "i", 1.0) == {"k": 5, "recall": 1.0, "queries": 120}


def test_ties_are_those_of_the_last_that_is_wanted() -> None:
    distances = np.array([[0, 1, 1, 1, 2], [0, 1, 2, 3, 4]], np.float32)
    places = np.array([[9, 8, 7, -1, 5], [4, 3, 2, 1, 0]])
    found = with_ties(distances, places, 2, np.array([1e-5, 1e-5], np.float32))
    assert found.tolist() == [[9, 8, 7, -2], [4, 3, -2, -2]]


def test_a_sample_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    nearest = np.array([[3, 1, 2]])
    np.savez(tmp_path / "s.npz", queries=np.zeros((1, 4), np.float32), nearest=nearest)
    assert Sample.load(tmp_path / "s.npz").k == 3


@pytest.mark.parametrize(
    ("factory", "least"),
    [("ivf-pq", 256), ("IVF512,Flat", 512), ("HNSW16_PQ8", 256), ("IVF4,PQ8,RFlat", 256)],
)
def test_a_type_that_needs_more_passages_is_refused_before_they_are_encoded(
    tmp_path: Path, factory: str, least: int
) -> None:
    corpus, encoder = write_corpus(tmp_path / "c.jsonl", 200), Numbered()
    with pytest.raises(ValueError, match=f"at least {least} vectors, got 200 of 200.*flat, sq8"):
        build_index(corpus, tmp_path / "i", encoder=encoder, storage=Storage(factory))
    assert encoder.encoded == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.jsonl"]


def test_a_sample_that_has_no_room_is_refused_beforehand(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl")
    storage = Storage("IVF2048,Flat", memory="200KB")
    with pytest.raises(ValueError, match=r"at least 2048 vectors, got 390 of 6000.*--memory"):
        build_index(corpus, tmp_path / "i", encoder=Numbered(), storage=storage)


def test_what_faiss_cannot_train_is_an_error_that_keeps_the_vectors(tmp_path: Path) -> None:
    corpus, encoder = write_corpus(tmp_path / "c.jsonl", 100), Numbered()
    with pytest.raises(ValueError, match="the vectors are kept"):
        build_index(corpus, tmp_path / "i", encoder=encoder, storage=Storage("RQ2x8"))
    done = encoder.encoded
    build_index(corpus, tmp_path / "i", encoder=encoder, storage=Storage("sq8"))
    assert encoder.encoded == done


def test_a_shard_says_what_a_shard_takes(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl")
    said: list[str] = []
    folder = build_index(
        corpus, tmp_path / "p", encoder=Numbered(), shard="1/2", report=said.append
    )
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert said[0].startswith(f"{6000 - 4096} passages x {DIM}")
    stated = float(said[0].split(" kB on disk")[0].split()[-1]) * 1000
    assert 0.7 * size < stated < 1.3 * size


def test_a_merge_takes_the_metric_of_its_shards(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", 60)
    part, out = tmp_path / "part", tmp_path / "m"
    build_index(corpus, part, encoder=Numbered(), shard="0/1", metric="l2")
    merge_shards([part], out, encoder=Numbered())
    assert read_manifest(out)["index"]["metric"] == "l2"
    with pytest.raises(IndexFolderError, match="metric must be 'l2', for which shard"):
        merge_shards([part], tmp_path / "n", encoder=Numbered(), storage=Storage("ivf"))
    about = json.loads((part / "shard.json").read_text())
    del about["metric"]  # of before it was kept
    (part / "shard.json").write_text(json.dumps(about))
    for metric in ("ip", "l2"):
        kept = Storage(metric=metric)
        merge_shards([part], out, encoder=Numbered(), storage=kept, overwrite=True)
        assert read_manifest(out)["index"]["metric"] == metric


def test_a_width_is_not_written_into_an_index_that_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", 60)
    graph = {"storage": Storage("hnsw"), "overwrite": True}
    folder = build_index(corpus, tmp_path / "i", dim=64, **graph)  # type: ignore[arg-type]

    def late(*args: Any) -> Any:
        monkeypatch.undo()
        build_index(corpus, folder, dim=32, **graph)  # type: ignore[arg-type]
        return recall_module.tune(*args)

    monkeypatch.setattr(recall_module, "tune", late)
    with pytest.raises(IndexFolderError, match="replaced meanwhile; tune it again"):
        tune_folder(folder)
    assert read_manifest(folder)["index"]["dimension"] == 32


def test_the_advice_after_a_mismatch_keeps_a_corpus_inside_the_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_alike(tmp_path / "c.jsonl")
    folder = build_index(corpus, tmp_path / "i", copy_corpus=True, dim=64)
    text = (folder / "corpus.jsonl").read_text().replace("stream0", "stream9")
    (folder / "corpus.jsonl").write_text(text)
    with pytest.raises(IndexFolderError) as caught:
        load_retriever(folder)
    cli.main(shlex.split(str(caught.value).partition("again: ")[2])[2:])
    assert (folder / "corpus.jsonl").read_text() == text
    assert load_retriever(folder).search(["stream9"], 1)[0][0].contents.endswith("stream9")
    capsys.readouterr()


def test_merging_over_an_index_keeps_the_corpus_inside_it(tmp_path: Path) -> None:
    corpus = write_alike(tmp_path / "c.jsonl")
    folder = build_index(corpus, tmp_path / "i", copy_corpus=True, dim=64)
    inside = folder / "corpus.jsonl"
    shard = build_index(inside, tmp_path / "p", shard="0/1", dim=64)
    merge_shards([shard], folder, overwrite=True)
    assert inside.read_text() == corpus.read_text()


def test_adopting_does_not_remove_what_it_refers_to(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", 300)
    folder = build_index(corpus, tmp_path / "i", encoder=Numbered(), copy_corpus=True)
    for faiss_file, passages in (
        (folder / "vectors.faiss", corpus),
        (tmp_path / "elsewhere.faiss", folder / "corpus.jsonl"),
    ):
        with pytest.raises(ValueError, match="must not lie in the folder that is made"):
            adopt_index(faiss_file, passages, Numbered(), folder, overwrite=True)
    assert (folder / "vectors.faiss").is_file()


@pytest.mark.parametrize("kind", ["bm25", "hybrid"])
def test_counting_words_is_estimated_and_bounded(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("bm25s")
    corpus = write_alike(tmp_path / "c.jsonl", texts=40, copies=25)
    said: list[str] = []
    folder = build_index(corpus, tmp_path / "i", kind=kind, report=said.append)
    assert said[0].startswith("1000 passages of about 4 words for BM25, about 1 s, ")
    size = sum(file.stat().st_size for file in (folder / "bm25").iterdir())
    assert 0.4 * size < float(said[0].split(" kB on disk")[0].split()[-1]) * 1000 < 3 * size
    with pytest.raises(ValueError, match=r"words of 1000 passages, got 1\.0 MB.*--kind dense"):
        build_index(corpus, tmp_path / "j", kind=kind, storage=Storage(memory="1MB"))


@pytest.mark.parametrize(
    "wrong", [{"encoder": "intfloat/e5-base-v2"}, {"storage": Storage("ivf")}, {"metric": "l2"}]
)
def test_words_have_no_vectors_to_be_set(tmp_path: Path, wrong: dict[str, object]) -> None:
    pytest.importorskip("bm25s")
    corpus = write_alike(tmp_path / "c.jsonl")
    with pytest.raises(ValueError, match="kind bm25 keeps no vectors"):
        build_index(corpus, tmp_path / "i", kind="bm25", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "i").exists()


def test_graphs_and_codes_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one core a million x 384 took 93 s as ivf, 260 s as ivf-pq and half an hour as hnsw."""
    ticks = iter(range(100))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(next(ticks)))
    ivf, codes, graph = (
        estimate.seconds_to_index(factory, "ip", 1_000_000, 384)
        for factory in ("IVF4096,Flat", "IVF4096,PQ48", "HNSW32")
    )
    assert 2 < codes / ivf < 4
    assert 10 < graph / ivf < 30
    assert estimate.seconds_to_index("SQ8", "ip", 1_000_000, 384) == 0


def test_results_are_kept_once_and_not_at_every_depth(tmp_path: Path) -> None:
    pytest.importorskip("bm25s")
    corpus = write_alike(tmp_path / "c.jsonl")
    folders = [
        str(build_index(corpus, tmp_path / kind, kind=kind)) for kind in ("dense", "bm25", "hybrid")
    ]
    both = HybridRetriever(folders[:2])
    both.search(["colour1", "colour2"], 3)
    kept = [len(one._cache) for one in (both, *both.retrievers)]  # type: ignore[attr-defined]
    assert kept == [2, 0, 0]
    assert len(both._cache.answer(["colour1"], 3, lambda *_: pytest.fail("is kept"))[0]) == 3


def test_a_pickle_keeps_its_settings_and_finds_its_folder_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bm25s")
    pytest.importorskip("torch")
    build_index(write_alike(tmp_path / "c.jsonl"), tmp_path / "i", dim=64)
    passages = [Passage("1", "one"), Passage("2", "two")]
    words = BM25Retriever(fit_bm25(p.contents for p in passages), passages, cache_size=7)
    assert pickle.loads(pickle.dumps(words))._cache.size == 7
    monkeypatch.chdir(tmp_path)
    made = pickle.dumps(TorchFlatRetriever("i", "cpu", corpus="c.jsonl", cache_size=3))
    monkeypatch.chdir("/")
    opened = pickle.loads(made)
    assert (len(opened), opened._cache.size) == (120, 3)


@pytest.mark.parametrize("lost", [False, True])
def test_a_folder_that_lacks_what_its_encoder_learned_is_broken(tmp_path: Path, lost: bool) -> None:
    folder = build_index(write_alike(tmp_path / "c.jsonl"), tmp_path / "i", dim=64)
    (folder / "sketch.json").unlink() if lost else os.truncate(folder / "sketch.json", 50)
    with pytest.raises(IndexFolderError, match=r"is broken .* research index build --corpus"):
        load_retriever(folder)


def test_a_broken_sample_is_said(tmp_path: Path) -> None:
    corpus = write_alike(tmp_path / "c.jsonl")
    folder = build_index(corpus, tmp_path / "i", storage=Storage("ivf"), dim=64)
    os.truncate(folder / "sample.npz", 200)
    with pytest.raises(IndexFolderError, match=r"has a broken sample .*; build it again"):
        tune_folder(folder)


@pytest.mark.parametrize(("kind", "whole"), [("ivf", True), ("hnsw", True), ("sq8", False)])
def test_torch_warns_of_compressed_vectors_only(
    tmp_path: Path, kind: str, whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("torch")
    corpus = write_alike(tmp_path / "c.jsonl")
    folder = build_index(corpus, tmp_path / "i", storage=Storage(kind), dim=64)
    TorchFlatRetriever(str(folder), device="cpu")
    assert ("compressed vectors" in caplog.text) is not whole


def test_the_training_sample_is_let_go_before_vectors_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take a quarter of the memory, which what is added needs."""
    samples: list[weakref.ref[Any]] = []
    taken, blocks = VectorParts.sample, VectorParts.blocks

    def sample(self: VectorParts, *args: Any) -> Any:
        found = taken(self, *args)
        samples.append(weakref.ref(found))
        return found

    def alone(self: VectorParts) -> Any:
        assert all(kept() is None for kept in samples)
        return blocks(self)

    monkeypatch.setattr(VectorParts, "sample", sample)
    monkeypatch.setattr(VectorParts, "blocks", alone)
    vectors = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    file = tmp_path / "raw"
    vectors.tofile(file)
    parts = VectorParts([VectorFile(file, 16)])
    store(parts, tmp_path / "index", "IVF4,SQ8", "ip", 1 << 30, lambda n: None)
    assert samples
