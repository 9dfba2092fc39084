"""Every type of index finds what it promises, says what it costs, and keeps what was tuned."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")

from doubles.numbered import COUNT, DIM, Numbered, write_corpus  # noqa: E402

from research_rl.envs.retrieval import (  # noqa: E402
    CorpusError,
    DenseRetriever,
    IndexFolderError,
    Storage,
    build_index,
    cli,
    load_retriever,
    merge_shards,
)
from research_rl.envs.retrieval.index import build as build_module  # noqa: E402
from research_rl.envs.retrieval.index.estimate import held_now, parse_size  # noqa: E402
from research_rl.envs.retrieval.index.manifest import read_manifest  # noqa: E402
from research_rl.envs.retrieval.index.recall import tune_folder  # noqa: E402
from research_rl.envs.retrieval.vectors.faiss_types import (  # noqa: E402
    TYPES,
    blas_for,
    bytes_per_vector,
    factory_string,
    new_index,
)
from research_rl.envs.retrieval.vectors.files import (  # noqa: E402
    VectorFile,
    VectorParts,
    encode_codes,
    streamed_header,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "c.jsonl")


def build(corpus: Path, out: Path, **storage: object) -> DenseRetriever:
    kept = Storage(**storage)  # type: ignore[arg-type]
    build_index(corpus, out, encoder=Numbered(), storage=kept)
    return open_numbered(out)


def open_numbered(folder: Path, mmap: bool | None = None) -> DenseRetriever:
    """Open a folder whose encoder is not one of ours."""
    retriever = load_retriever(folder, mmap=mmap, cache_size=0)
    assert isinstance(retriever, DenseRetriever)
    return retriever


@pytest.fixture(scope="module", autouse=True)
def known_encoder() -> object:
    """Let index folders name the encoder of these tests."""
    from research_rl.envs.retrieval.index import open as index

    before = index.make_encoder
    index.make_encoder = lambda name, **options: Numbered()
    yield None
    index.make_encoder = before


@pytest.mark.parametrize(
    "storage",
    [
        *({"index_type": name} for name in TYPES),
        *({"index_type": name, "fp16": True} for name in ("flat", "ivf", "hnsw")),
        {"index_type": "PCA24,IVF16,Flat"},
        {"index_type": "ivf", "metric": "l2"},
    ],
    ids=str,
)
def test_each_type_is_built_found_in_mapped_and_measured(
    corpus: Path, tmp_path: Path, storage: dict[str, object]
) -> None:
    retriever = build(corpus, tmp_path / "i", **storage)
    queries = [str(i) for i in range(0, COUNT, 97)]
    found = retriever.search(queries, 5)
    assert all(len(row) == 5 for row in found)
    manifest = read_manifest(tmp_path / "i")
    exact = manifest["index"]["type"] == "Flat"
    assert ("recall" in manifest) is not exact
    lossless = storage["index_type"] in ("flat", "ivf", "hnsw", "sq8", "ivf-sq8")
    if not exact:
        assert manifest["recall"]["recall"] >= (0.85 if lossless else 0.2)
    own = [row[0].id == query for row, query in zip(found, queries, strict=True)]
    assert np.mean(own) >= (0.95 if lossless else 0.2)
    assert open_numbered(tmp_path / "i", mmap=True).search(queries, 5) == found
    assert not list(tmp_path.glob(".*"))


def test_tuning_finds_a_width_for_the_recall_and_keeps_it(corpus: Path, tmp_path: Path) -> None:
    narrow = build(corpus, tmp_path / "i", index_type="ivf", nprobe=1)
    first = read_manifest(tmp_path / "i")
    assert (narrow.index.nprobe, first["index"]["nprobe"]) == (1, 1)
    found = tune_folder(tmp_path / "i", 0.99)
    tuned = read_manifest(tmp_path / "i")
    assert tuned["recall"] == found
    assert found["recall"] >= 0.99 > first["recall"]["recall"]
    assert open_numbered(tmp_path / "i").index.nprobe == tuned["index"]["nprobe"] > 1
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        tune_folder(tmp_path / "i", 1.5)
    build(corpus, tmp_path / "sq", index_type="sq8")
    with pytest.raises(ValueError, match="must be an ivf or hnsw one"):
        tune_folder(tmp_path / "sq")


def test_lists_too_short_for_k_are_not_the_end(corpus: Path, tmp_path: Path) -> None:
    retriever = build(corpus, tmp_path / "i", index_type="IVF256,Flat", nprobe=1)
    assert [len(row) for row in retriever.search(["7", "8"], 500)] == [500, 500]


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "SQfp16", "SQ4"])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_files_written_in_blocks_are_those_of_faiss(
    tmp_path: Path, factory: str, metric: str
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((100, 12)).astype(np.float32)
    index = new_index(12, metric, factory)  # type: ignore[arg-type]
    index.train(vectors)
    header = streamed_header(index, 100)
    assert header is not None
    codes = [encode_codes(index, vectors[i : i + 30]).tobytes() for i in range(0, 100, 30)]
    index.add(vectors)
    assert header + b"".join(codes) == faiss.serialize_index(index).tobytes()


def test_parts_read_as_one(tmp_path: Path) -> None:
    vectors = np.arange(60, dtype=np.float32).reshape(20, 3)
    files = [VectorFile(tmp_path / f"{i}", 3, header=b"abc") for i in range(3)]
    for file, (start, stop) in zip(files, [(0, 7), (7, 7), (7, 20)], strict=True):
        file.cut(0)
        file.append(vectors[start:stop])
    parts = VectorParts(files)
    assert len(parts) == 20
    np.testing.assert_array_equal(np.concatenate([b for _, b in parts.blocks(4)]), vectors)
    starts = [start for start, _ in parts.blocks(4)]
    assert starts == [0, 4, 7, 11, 15, 19]
    np.testing.assert_array_equal(parts.sample(20), vectors)
    assert len(np.unique(parts.sample(9)[:, 0])) == 9


def test_a_killed_build_goes_on_and_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    """``kill -9`` between two blocks; the second run encodes only what is missing."""
    whole = build_index(corpus, tmp_path / "whole", encoder=Numbered())
    code = (
        "import sys; from doubles.numbered import Numbered\n"
        "from research_rl.envs.retrieval import build_index\n"
        "build_index(sys.argv[1], sys.argv[2], encoder=Numbered(pause=30.0))\n"
    )
    out = tmp_path / "killed"
    command = [sys.executable, "-c", code, str(corpus), str(out)]
    process = subprocess.Popen(command)
    partial = tmp_path / ".killed.building" / "vectors.faiss"
    deadline = time.monotonic() + 60
    block = (whole / "vectors.faiss").stat().st_size - (COUNT - 4096) * 4 * DIM  # with its header
    while not partial.is_file() or partial.stat().st_size < block:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(FileExistsError, match="place of another build; wait"):
        build_index(corpus, out, encoder=Numbered())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with partial.open("ab") as file:
        file.write(b"half a row")
    encoder = Numbered()
    build_index(corpus, out, encoder=encoder)
    assert encoder.encoded == COUNT - 4096
    for name in ("vectors.faiss", "offsets.npy"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_build_of_something_else_starts_anew(corpus: Path, tmp_path: Path) -> None:
    class Stops(Numbered):
        def encode_passages(self, texts: object) -> object:  # type: ignore[override]
            if self.encoded:
                raise OSError("No space left on device")
            return super().encode_passages(texts)  # type: ignore[arg-type]

    said = r"No space.*/i is not made .* MB of it stay in .*/\.i\.building.*goes on from there"
    with pytest.raises(OSError, match=said):
        build_index(corpus, tmp_path / "i", encoder=Stops())
    assert (tmp_path / ".i.building").is_dir()
    encoder = Numbered()
    build_index(corpus, tmp_path / "i", encoder=encoder, metric="l2")
    assert encoder.encoded == COUNT


def test_a_build_cut_short_at_its_very_end_encodes_nothing_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == tmp_path / "i":
            raise OSError("killed")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(OSError, match="killed"):
            build_index(corpus, tmp_path / "i", encoder=Numbered())
    encoder = Numbered()
    folder = build_index(corpus, tmp_path / "i", encoder=encoder)
    assert encoder.encoded == 0
    names = {"manifest.json", "offsets.npy", "vectors.faiss"}
    assert {path.name for path in folder.iterdir()} == names


def test_a_corpus_changed_under_way_is_refused(corpus: Path, tmp_path: Path) -> None:
    own = shutil.copyfile(corpus, tmp_path / "own.jsonl")

    class Changes(Numbered):
        def encode_passages(self, texts: object) -> object:  # type: ignore[override]
            own.write_text(own.read_text().replace("7 is", "8 is"))
            return super().encode_passages(texts)  # type: ignore[arg-type]

    with pytest.raises(CorpusError, match="was changed while it was indexed"):
        build_index(own, tmp_path / "i", encoder=Changes())
    assert not (tmp_path / "i").exists()


def test_a_merge_cut_short_does_not_trust_another_corpus(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(corpus, tmp_path / "part", encoder=Numbered(), shard="0/1")
    place = ".m.building"

    def killed(*_: object) -> None:
        shutil.copytree(tmp_path / place, tmp_path / "left")
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "store", killed)
        with pytest.raises(OSError, match="killed"):
            merge_shards([tmp_path / "part"], tmp_path / "m", encoder=Numbered())
    shutil.rmtree(tmp_path / place, ignore_errors=True)
    (tmp_path / "left").rename(tmp_path / place)  # what kill -9 leaves
    corpus.write_text(corpus.read_text().replace("7 is", "8 is"))
    with pytest.raises(IndexFolderError, match="do not belong together"):
        merge_shards([tmp_path / "part"], tmp_path / "m", encoder=Numbered())


@pytest.mark.parametrize("index_type", ["flat", "ivf-sq8"])
def test_shards_give_the_index_of_one_build(corpus: Path, tmp_path: Path, index_type: str) -> None:
    kept = Storage(index_type=index_type)
    whole = build_index(corpus, tmp_path / "whole", encoder=Numbered(), storage=kept)
    shards = [tmp_path / f"part{i}" for i in (1, 0)]
    for i, shard in zip((1, 0), shards, strict=True):
        build_index(corpus, shard, encoder=Numbered(), shard=f"{i}/2")
    with pytest.raises(IndexFolderError, match="shards must be 0 to 1, each once, got"):
        merge_shards(shards[:1], tmp_path / "merged", encoder=Numbered())
    with pytest.raises(IndexFolderError, match="research index merge"):
        load_retriever(shards[0])
    merge_shards(shards, tmp_path / "merged", encoder=Numbered(), storage=kept)
    for name in ("vectors.faiss", "offsets.npy"):
        assert (tmp_path / "merged" / name).read_bytes() == (whole / name).read_bytes()
    parts = [read_manifest(folder) for folder in (tmp_path / "merged", whole)]
    assert json.dumps(parts[0]) == json.dumps(parts[1])


def test_what_cannot_be_is_refused_before_any_work(corpus: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"index_type": "iff"}, "type must be one of flat, sq8, .* or a FAISS factory string"),
        ({"index_type": "sq8", "fp16": True}, "fp16 must go with the types flat, ivf, hnsw"),
        ({"nprobe": 4}, "nprobe must be at least 1 and go with an ivf type, got 4 for 'flat'"),
        ({"index_type": "ivf", "ef_search": 4}, "efSearch must be .* hnsw type"),
        ({"memory": "much"}, "memory must be a size such as 2GB"),
        ({"index_type": "hnsw", "memory": "20MB"}, "memory must be at least .* give it more"),
    ]
    for storage, words in cases:
        with pytest.raises(ValueError, match=words):
            build(corpus, tmp_path / "i", **storage)
    with pytest.raises(ValueError, match="shard must be i/n"):
        build_index(corpus, tmp_path / "i", shard="2/2")
    with pytest.raises(ValueError, match="type must be left out beside shard, got 'ivf'; a shard"):
        build_index(corpus, tmp_path / "i", shard="0/2", storage=Storage("ivf"))
    assert not list(tmp_path.iterdir())


def test_a_shard_without_passages_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", 2)
    with pytest.raises(ValueError, match="must hold passages, got a corpus of 2; make fewer"):
        build_index(corpus, tmp_path / "i", encoder=Numbered(), shard="0/5")


def test_a_refusal_names_the_types_that_fit(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be at least") as caught:
        build(corpus, tmp_path / "i", index_type="IVF8,Flat,RFlat", memory=held_now() + 2_000_000)
    fitting = str(caught.value).partition("take a type that fits: ")[2].split(", ")
    for name in fitting:
        if name:
            build(corpus, tmp_path / name, index_type=name, memory=held_now() + 2_000_000)


def test_vectors_kept_twice_count_twice() -> None:
    sizes = [
        bytes_per_vector(new_index(DIM, "ip", f))
        for f in ("SQ8", "SQ8,RFlat", "SQ8,Refine(SQfp16)")
    ]
    assert sizes == [DIM, DIM + 4 * DIM, DIM + 2 * DIM]
    ivf = [bytes_per_vector(new_index(DIM, "ip", f)) for f in ("IVF8,SQ8", "IVF8,SQ8,RFlat")]
    assert ivf == [DIM + 8, DIM + 8 + 4 * DIM]


def test_the_advice_holds_every_option(tmp_path: Path) -> None:
    (tmp_path / "my files").mkdir()
    corpus = write_corpus(tmp_path / "my files" / "corpus.jsonl", 300)
    folder = build_index(
        *(corpus, tmp_path / "my files" / "index", "hybrid"),
        **{"dim": 64, "num_hashes": 4, "k1": 1.5},
        storage=Storage("ivf", "l2", nprobe=3),
    )
    before = read_manifest(folder)
    with corpus.open("a") as file:
        file.write('{"id": "new", "contents": "one more"}\n')
    with pytest.raises(IndexFolderError, match="build it again: research index build") as caught:
        load_retriever(folder)
    words = shlex.split(str(caught.value).partition("build it again: ")[2])
    cli.main([*words[2:], "--quiet"])
    after = read_manifest(folder)
    assert after["corpus"]["count"] == 301
    for key in ("kind", "encoder", "bm25", "index"):
        assert after[key] == before[key], key
    assert after["bm25"]["k1"] == after["encoder"]["settings"]["k1"] == 1.5


def test_threads_share_the_blas_threshold() -> None:
    before = faiss.cvar.distance_compute_blas_threshold
    with blas_for(4):
        with blas_for(64), blas_for(1):
            assert faiss.cvar.distance_compute_blas_threshold == 1
        assert faiss.cvar.distance_compute_blas_threshold == 1, "one still searches"
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_the_estimate_comes_before_the_work(corpus: Path, tmp_path: Path) -> None:
    said: list[str] = []
    kept = Storage(index_type="ivf")
    build_index(corpus, tmp_path / "i", encoder=Numbered(), storage=kept, report=said.append)
    assert f"{COUNT} passages x {DIM} as IVF" in said[0]
    assert "of memory" in said[0]
    assert said[1].startswith("recall@5 0.9")


def test_sizes_and_factories() -> None:
    sizes = {"2GB": 2 * 10**9, "512MiB": 512 * 2**20, "1.5 gb": 1_500_000_000, "1000": 1000}
    assert {text: parse_size(text) for text in sizes} == sizes
    assert factory_string("ivf-sq8", 1_000_000, 384) == "IVF4096,SQ8"
    assert factory_string("ivf", 21_015_324, 768) == "IVF16384,Flat"
    assert factory_string("ivf-pq", 1_000_000, 384) == "IVF4096,PQ48"
    assert factory_string("ivf", 3, 8) == "IVF1,Flat"
    assert factory_string("PCA64,Flat", 3, 8) == "PCA64,Flat"


def test_a_type_is_judged_by_the_encoders_own_dimension(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", 600)
    build_index(corpus, tmp_path / "index", dim=96, storage=Storage("IVF4,PQ48x4"))
    assert read_manifest(tmp_path / "index")["index"]["type"] == "IVF4,PQ48x4"
    with pytest.raises(ValueError, match="for 96 numbers"):
        build_index(corpus, tmp_path / "no", dim=96, storage=Storage("IVF4,PQ64"))


def test_a_flat_index_has_nothing_to_tune(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", 60)
    build_index(corpus, tmp_path / "index", encoder=Numbered())
    with pytest.raises(ValueError, match="must be an ivf or hnsw one"):
        tune_folder(tmp_path / "index")
