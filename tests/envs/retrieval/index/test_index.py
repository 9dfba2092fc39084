"""An index folder opens only with what it was made from, and says what to run otherwise."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")

from research_rl.envs.retrieval import (  # noqa: E402
    BM25SketchEncoder,
    CorpusError,
    DenseRetriever,
    IndexFolderError,
    build_index,
    forget_retrievers,
    load_retriever,
)
from research_rl.envs.retrieval.index import manifest as manifests  # noqa: E402
from research_rl.envs.retrieval.index import open as opened  # noqa: E402
from research_rl.envs.retrieval.index.build_steps import (  # noqa: E402
    SourceFile,
    check_unchanged,
)
from research_rl.envs.retrieval.index.manifest import read_manifest  # noqa: E402
from research_rl.envs.system import file_mark, files, sha256_of  # noqa: E402

FACTS = [("oslo", "Norway"), ("paris", "France"), ("lima", "Peru"), ("cairo", "Egypt")]


def write_corpus(path: Path, facts: list[tuple[str, str]] = FACTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        json.dumps({"id": city, "contents": f'"{city}"\n{city} is the capital of {country}.'})
        for city, country in facts
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "data" / "corpus.jsonl")


@pytest.fixture
def index(tmp_path: Path, corpus: Path) -> Path:
    return build_index(corpus, tmp_path / "index", dim=64)


def best(folder: Path, query: str, corpus: Path | None = None) -> str:
    return load_retriever(folder, corpus).search([query], 1)[0][0].id


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_what_was_built_finds_what_the_memory_finds(
    tmp_path: Path, corpus: Path, metric: str
) -> None:
    folder = build_index(corpus, tmp_path / "i", metric=metric, dim=64)  # type: ignore[arg-type]
    retriever = load_retriever(folder)
    assert isinstance(retriever, DenseRetriever)
    memory = DenseRetriever.from_passages(
        list(retriever.passages),
        BM25SketchEncoder(dim=64),
        metric,  # type: ignore[arg-type]
    )
    queries = ["capital of Peru", "Paris", "Egypt or Norway", ""]
    assert retriever.search(queries, 3) == memory.search(queries, 3)


def test_the_manifest_tells_what_it_was_made_from(index: Path, corpus: Path) -> None:
    manifest = read_manifest(index)
    assert manifest["kind"] == "dense"
    assert manifest["corpus"]["count"] == 4
    assert manifest["corpus"]["bytes"] == corpus.stat().st_size
    assert manifest["encoder"]["name"] == "bm25-sketch"
    assert manifest["encoder"]["settings"]["dim"] == 64
    assert manifest["index"] == {"type": "Flat", "metric": "ip", "dimension": 64}
    assert manifest["versions"]["numpy"] == np.__version__


def test_a_process_opens_a_folder_once(index: Path) -> None:
    retriever = load_retriever(index)
    assert load_retriever(str(index)) is retriever
    assert copy.deepcopy(retriever) is retriever
    pickled = pickle.dumps(retriever)
    assert pickle.loads(pickled) is retriever
    assert len(pickled) < 500


def test_a_rebuilt_folder_is_opened_anew(index: Path, corpus: Path) -> None:
    before = weakref.ref(load_retriever(index))
    write_corpus(corpus, [*FACTS, ("rome", "Italy")])
    build_index(corpus, index, dim=64, overwrite=True)
    assert best(index, "capital of Italy") == "rome"
    assert best(index, "capital of Peru") == "lima"
    gc.collect()
    assert before() is None, "the one that was replaced must not stay in memory"
    assert load_retriever(index) is load_retriever(index)
    now = weakref.ref(load_retriever(index))
    forget_retrievers()
    gc.collect()
    assert now() is None


@pytest.mark.parametrize("finish", ["build", "load"])
def test_what_a_killed_overwrite_leaves_is_removed(
    finish: str, tmp_path: Path, index: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".index.old.mine").mkdir()  # of somebody else
    shutil.copytree(index, tmp_path / ".index.old.123")  # of version 0.1.0
    with monkeypatch.context() as patch:
        steps = "research_rl.envs.retrieval.index.build_steps.remove_replaced"
        patch.setattr(steps, lambda _: None)
        patch.setattr("research_rl.envs.system.files.remove_former", lambda _: None)
        build_index(corpus, index, dim=32, overwrite=True)  # killed before its last act
    left = {".index.former", ".index.old.123", ".index.old.mine"}
    assert {p.name for p in tmp_path.iterdir()} == {"data", "index", *left}
    if finish == "build":
        build_index(corpus, index, dim=64, overwrite=True)
    assert best(index, "capital of Peru") == "lima"
    assert {p.name for p in tmp_path.iterdir()} == {"data", "index", ".index.old.mine"}


def test_corpus_and_index_move_together(tmp_path: Path) -> None:
    build_index(write_corpus(tmp_path / "old" / "corpus.jsonl"), tmp_path / "old" / "index", dim=64)
    (tmp_path / "old").rename(tmp_path / "new")
    assert best(tmp_path / "new" / "index", "capital of Peru") == "lima"


def test_a_copied_corpus_moves_with_its_folder(tmp_path: Path, corpus: Path) -> None:
    folder = build_index(corpus, tmp_path / "i", copy_corpus=True, dim=64)
    corpus.unlink()
    moved = folder.rename(tmp_path / "elsewhere")
    assert read_manifest(moved)["corpus"]["path"] == "corpus.jsonl"
    assert best(moved, "capital of Peru") == "lima"


def test_a_moved_corpus_can_be_pointed_at(tmp_path: Path, index: Path, corpus: Path) -> None:
    moved = tmp_path / "elsewhere.jsonl"
    shutil.copyfile(corpus, moved)  # a new time of change: the hash decides
    corpus.unlink()
    with pytest.raises(IndexFolderError, match=r"corpus of index .* is not at .*--corpus"):
        load_retriever(index)
    assert best(index, "capital of Peru", moved) == "lima"
    retriever = load_retriever(index, moved)
    assert pickle.loads(pickle.dumps(retriever)) is retriever


def test_content_and_not_its_time_tells_whether_an_index_is_open(
    index: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_retriever(index)
    for file in (corpus, index / "manifest.json"):
        os.utime(file, ns=(0, 5))
    assert load_retriever(index) is before
    monkeypatch.setattr(files, "_READ_ANEW", 0)  # as if it were a large one
    assert load_retriever(index) is before
    monkeypatch.setattr(opened, "sha256_of", lambda path: pytest.fail("read again"))
    mark = file_mark(corpus)
    with opened._CACHE_LOCK:
        for key, (state, retriever) in list(opened._CACHE.items()):
            opened._CACHE[key] = state._replace(corpus=mark), retriever
    assert load_retriever(index) is before
    monkeypatch.undo()
    alter_in_secret(index, corpus)
    with pytest.raises(IndexFolderError, match="do not belong together"):
        load_retriever(index)


def test_an_index_that_is_replaced_while_it_is_opened_is_opened_anew(
    index: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, counts = opened.vectors_of, iter(range(2, 9))

    def late(*args: object) -> object:
        if (count := next(counts)) == 3:
            monkeypatch.setattr(opened, "vectors_of", read)
        build_index(corpus, index, overwrite=True, dim=64, k1=count / 4)
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(opened, "vectors_of", late)
    retriever = load_retriever(index)
    settings = read_manifest(index)["encoder"]["settings"]
    assert retriever.encoder.settings() == settings  # type: ignore[attr-defined]
    assert settings["k1"] == 0.75
    assert load_retriever(index) is retriever
    monkeypatch.setattr(opened, "vectors_of", late)
    with pytest.raises(IndexFolderError, match="replaced 5 times"):
        load_retriever(index, cache_size=1)


def test_a_large_corpus_that_nobody_wrote_is_not_read_again(
    index: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_READ_ANEW", 0)
    read: list[Path] = []
    monkeypatch.setattr(manifests, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    manifest = read_manifest(index)
    manifests.check_corpus(index, manifest, corpus)
    assert not read
    alter_in_secret(index, corpus)
    with pytest.raises(IndexFolderError, match="do not belong together"):
        manifests.check_corpus(index, manifest, corpus)
    assert read == [corpus]


def test_a_corpus_that_is_touched_while_it_is_indexed_is_the_same(corpus: Path) -> None:
    source = SourceFile.of(corpus)
    os.utime(corpus, ns=(0, 5))
    check_unchanged(source)
    os.utime(corpus, ns=(0, int(source.mark.split("-")[2])))
    alter_in_secret(corpus.parent, corpus)
    with pytest.raises(CorpusError, match="changed while it was indexed"):
        check_unchanged(source)


def grow(index: Path, corpus: Path) -> None:
    corpus.write_text(corpus.read_text() + '{"id": "x", "contents": "y"}\n')


def alter(index: Path, corpus: Path) -> None:
    stat = corpus.stat()
    corpus.write_text(corpus.read_text().replace("Peru", "Mali"))
    os.utime(corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def alter_in_secret(index: Path, corpus: Path) -> None:
    """Other content of the same size, with the time of change of before."""
    stat = corpus.stat()
    corpus.write_text(corpus.read_text().replace("Peru", "Mali"))
    os.utime(corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def lose_a_vector(index: Path, corpus: Path) -> None:
    vectors = faiss.read_index(str(index / "vectors.faiss"))
    vectors.remove_ids(np.array([0]))
    faiss.write_index(vectors, str(index / "vectors.faiss"))


def other_dimension(index: Path, corpus: Path) -> None:
    vectors = faiss.IndexFlatIP(8)
    vectors.add(np.ones((4, 8), np.float32))
    faiss.write_index(vectors, str(index / "vectors.faiss"))


def break_vectors(index: Path, corpus: Path) -> None:
    (index / "vectors.faiss").write_bytes(b"no index")


def lose_offsets(index: Path, corpus: Path) -> None:
    (index / "offsets.npy").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (grow, r"do not belong together \(bytes: \d+ in the file, \d+ in the manifest\)"),
        (alter, r"do not belong together \(sha256: "),
        (alter_in_secret, r"do not belong together \(sha256: "),
        (lose_a_vector, "must hold 4 vectors as its manifest says, got 3"),
        (other_dimension, r"must hold 64 numbers a vector .* as its manifest says, got 8"),
        (break_vectors, "is broken"),
        (lose_offsets, "is broken"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    index: Path, corpus: Path, spoil: Callable[[Path, Path], None], words: str
) -> None:
    spoil(index, corpus)
    with pytest.raises(IndexFolderError, match=words) as caught:
        load_retriever(index)
    assert f"research index build --corpus {corpus} --out {index}" in str(caught.value)
    assert "--overwrite" in str(caught.value)


def test_a_corpus_changed_after_the_index_was_opened_is_refused(index: Path, corpus: Path) -> None:
    before = load_retriever(index)
    alter(index, corpus)
    with pytest.raises(IndexFolderError, match="sha256"):
        load_retriever(index)
    write_corpus(corpus)  # as it was, with another time of change
    assert load_retriever(index).search(["Peru"], 1) == before.search(["Peru"], 1)


def test_a_folder_that_is_no_index_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match=r"does not exist; make it: research index build"):
        load_retriever(tmp_path / "none")
    with pytest.raises(IndexFolderError, match=r"no manifest.json\); make it"):
        load_retriever(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(IndexFolderError, match="not a manifest"):
        load_retriever(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99, "kind": "dense"}')
    with pytest.raises(IndexFolderError, match="must have format 1, got 99"):
        load_retriever(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1, "kind": "dens"}')
    with pytest.raises(ValueError, match="did you mean 'dense'"):
        load_retriever(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1, "kind": "dense", "corpus": {}}')
    with pytest.raises(IndexFolderError, match=r"must say corpus.path; build the index again"):
        load_retriever(tmp_path)


def test_a_failed_build_leaves_nothing(tmp_path: Path, corpus: Path) -> None:
    class Broken(BM25SketchEncoder):
        def save(self, folder: Path) -> None:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match=r"No space.*out/i is not made .*nothing is left of it"):
        build_index(corpus, tmp_path / "out" / "i", encoder=Broken(dim=64))
    assert list((tmp_path / "out").iterdir()) == []
    corpus.write_text(corpus.read_text() + "{}\n")
    with pytest.raises(CorpusError, match=r"corpus.jsonl:5: id must be"):
        build_index(corpus, tmp_path / "out" / "i")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_build_replaces_an_index_only_when_told(
    tmp_path: Path, index: Path, corpus: Path
) -> None:
    with pytest.raises(FileExistsError, match="--overwrite"):
        build_index(corpus, index)
    with pytest.raises(FileExistsError, match="new folder or an index"):
        build_index(corpus, corpus.parent, overwrite=True)
    assert best(index, "capital of Peru") == "lima"
    build_index(corpus, index, overwrite=True, dim=32)
    assert read_manifest(index)["index"]["dimension"] == 32
    assert {p.name for p in tmp_path.iterdir()} == {"data", "index"}


def test_unknown_choices_are_refused_before_any_work(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(ValueError, match="kind must be one of dense, bm25, hybrid, milvus, got"):
        build_index(corpus, tmp_path / "i", kind="sparse")
    with pytest.raises(ValueError, match="metric must be"):
        build_index(corpus, tmp_path / "i", metric="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not take these options"):
        build_index(corpus, tmp_path / "i", size=3)
    assert not (tmp_path / "i").exists()
