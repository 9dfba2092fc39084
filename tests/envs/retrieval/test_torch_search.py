"""The search through torch finds what FAISS finds, whatever the blocks, shards and precision."""

from __future__ import annotations

import json
import logging
import pickle
import weakref
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

faiss = pytest.importorskip("faiss")

from research_rl.envs.retrieval import build_index, load_retriever  # noqa: E402
from research_rl.envs.retrieval import torch_flat as torch_search  # noqa: E402
from research_rl.envs.retrieval.encoders.base import Vectors  # noqa: E402
from research_rl.envs.retrieval.torch_flat import TorchFlatIndex, TorchFlatRetriever, stored_vectors  # noqa: E402
from research_rl.envs.retrieval.vectors.faiss_types import Metric, new_index  # noqa: E402

METRICS: tuple[Metric, ...] = ("ip", "l2")
DTYPES = ("bfloat16", "float16", "float32")


def clustered(n: int, dim: int, seed: int = 0) -> Vectors:
    """Vectors of length 1 around a few centres, as encoders make them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((8, dim))
    vectors = centres[rng.integers(8, size=n)] + 0.5 * rng.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_faiss(vectors: Vectors, queries: Vectors, k: int, metric: Metric) -> Any:
    index = new_index(vectors.shape[1], metric)
    index.add(vectors)
    return index.search(queries, k)


def by_sorting(vectors: Vectors, queries: Vectors, k: int, metric: Metric) -> Any:
    """Sums in float64, rounded to float32; equal scores by position."""
    x, q = vectors.astype(np.float64), queries.astype(np.float64)
    scores = q @ x.T if metric == "ip" else ((q[:, None] - x[None]) ** 2).sum(-1)
    scores = scores.astype(np.float32)
    order = np.argsort(-scores if metric == "ip" else scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_mb", [1, 256])
def test_it_finds_what_faiss_finds(metric: Metric, dtype: Any, block_mb: int) -> None:
    vectors, queries = clustered(20_000, 48), clustered(40, 48, seed=0)[::2]
    index = TorchFlatIndex(vectors, metric, "cpu", dtype, block_mb)
    assert (index.ntotal, index.d, index.full_precision) == (20_000, 48, True)
    scores, places = index.search(queries, 10)
    wanted, ids = by_faiss(vectors, queries, 10, metric)
    np.testing.assert_array_equal(places, ids)
    np.testing.assert_allclose(scores, wanted, atol=2e-6)
    assert scores.dtype == np.float32
    assert places.dtype == np.int64


@given(
    rows=st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=80),
    asked=st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=1, max_size=9),
    k=st.integers(1, 6),
    metric=st.sampled_from(METRICS),
    dtype=st.sampled_from(DTYPES),
    shards=st.integers(1, 3),
)
@settings(deadline=None)
def test_ties_come_by_position(
    rows: Any, asked: Any, k: int, metric: Metric, dtype: Any, shards: int
) -> None:
    x, q = np.array(rows, np.float32), np.array(asked, np.float32)
    scores, places = TorchFlatIndex(x, metric, ["cpu"] * shards, dtype).search(q, k)
    wanted, ids = by_sorting(x, q, k, metric)
    there = min(k, len(x))
    np.testing.assert_array_equal(places[:, :there], ids)
    np.testing.assert_array_equal(scores[:, :there], wanted)
    assert (places[:, there:] == -1).all()
    np.testing.assert_array_equal(scores, np.sort(scores)[:, :: -1 if metric == "ip" else 1])
    if k > len(x):
        np.testing.assert_array_equal(scores, by_faiss(x, q, k, metric)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_what_half_precision_cannot_tell_apart_is_told_apart(metric: Metric, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal(32)
    vectors = (base + 1e-5 * rng.standard_normal((3000, 32))).astype(np.float32)
    queries = np.stack([base, vectors[77]]).astype(np.float32)
    _, places = TorchFlatIndex(vectors, metric, "cpu", dtype).search(queries, 5)
    wanted, ids = by_sorting(vectors, queries, 5, metric)
    np.testing.assert_array_equal(places, ids)
    assert metric == "ip" or (places[1, 0] == 77 and wanted[1, 0] == 0)


def test_many_equal_vectors_keep_their_order() -> None:
    vectors = np.concatenate([np.ones((5000, 4)), 2 * np.ones((1, 4))]).astype(np.float32)
    _, places = TorchFlatIndex(vectors, device="cpu").search(np.ones((2, 4), np.float32), 4)
    assert places.tolist() == [[5000, 0, 1, 2]] * 2
    _, places = TorchFlatIndex(vectors, device="cpu").search(np.zeros((1, 4), np.float32), 3)
    assert places.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("factor", [1e-12, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths_that_half_precision_cannot_hold(factor: float, dtype: Any) -> None:
    vectors = clustered(2000, 16) * np.float32(factor)
    queries = vectors[:7]
    _, places = TorchFlatIndex(vectors, "ip", "cpu", dtype).search(queries, 5)
    np.testing.assert_array_equal(places, by_sorting(vectors, queries, 5, "ip")[1])


def test_the_bound_holds_for_every_vector_left_out() -> None:
    vectors, queries = clustered(4000, 64), clustered(9, 64, seed=3)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    for dtype in DTYPES:
        index = TorchFlatIndex(vectors, "ip", "cpu", dtype)  # type: ignore[arg-type]
        rough, places, bound = index._scan(queries, 50)
        best_left_out = exact.copy()
        np.put_along_axis(best_left_out, places, -np.inf, axis=1)
        assert (best_left_out.max(axis=1) * index._scale**2 <= rough[:, -1] + bound).all()


def test_candidates_suffice_as_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    scan = TorchFlatIndex._scan

    def spy(self: TorchFlatIndex, queries: Vectors, width: int) -> Any:
        widths.append((len(queries), width))
        return scan(self, queries, width)

    monkeypatch.setattr(TorchFlatIndex, "_scan", spy)
    vectors, queries = clustered(20_000, 64), clustered(600, 64, seed=4)
    TorchFlatIndex(vectors, "ip", "cpu", "float16").search(queries, 18)
    assert widths[:2] == [(512, 72), (88, 72)]
    assert sum(n for n, width in widths if width > 72) < 60


def test_vectors_widened_on_a_cpu_keep_to_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    product = torch_search.product

    def spy(queries: Any, vectors: Any) -> Any:
        rows.append(len(vectors))
        return product(queries, vectors)

    monkeypatch.setattr(torch_search, "product", spy)
    vectors = clustered(20_000, 64)
    for dtype, wanted in (("float16", 4096), ("bfloat16", 20_000)):
        rows.clear()
        index = TorchFlatIndex(vectors, "ip", "cpu", dtype, block_mb=1)  # type: ignore[arg-type]
        index.search(vectors[:1], 3)
        assert max(rows) == wanted, dtype


def test_without_full_precision_it_says_so() -> None:
    vectors = clustered(3000, 16)
    index = TorchFlatIndex(vectors.astype(np.float16), device="cpu")
    assert not index.full_precision
    _, places = index.search(vectors[:5], 3)
    rounded = vectors.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(places, by_sorting(rounded, vectors[:5], 3, "ip")[1])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    words = [f"w{i % 37} v{i % 11} u{i % 5}" for i in range(300)]
    rows = [json.dumps({"id": str(i), "contents": f'"t{i}"\n{w}'}) for i, w in enumerate(words)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path / "corpus.jsonl"


@pytest.mark.parametrize("metric", METRICS)
def test_a_folder_answers_as_it_does_through_faiss(corpus: Path, metric: Metric) -> None:
    folder = build_index(corpus, corpus.parent / "index", metric=metric, dim=64)
    plain = load_retriever(folder)
    retriever = TorchFlatRetriever(str(folder), device="cpu")
    queries = ["w3 v2", "u4", "t17", "unknown", "", "w3 v2"]
    for k in (1, 5, 400):
        found, wanted = retriever.search(queries, k), plain.search(queries, k)
        assert [[p.id for p in row] for row in found] == [[p.id for p in row] for row in wanted]
        np.testing.assert_allclose(
            [p.score for row in found for p in row],
            [p.score for row in wanted for p in row],
            rtol=1e-5,
            atol=1e-5,
        )
    again = pickle.loads(pickle.dumps(retriever))
    assert isinstance(again, TorchFlatRetriever)
    assert again.search(queries, 2) == retriever.search(queries, 2)


def test_it_is_a_class_that_a_configuration_can_name(corpus: Path) -> None:
    from jsonargparse import ArgumentParser

    from research_rl.envs.types import Retriever

    folder = build_index(corpus, corpus.parent / "index", dim=64)
    parser = ArgumentParser()
    parser.add_argument("--index", type=str | Retriever)
    arguments = {"folder": str(folder), "device": "cpu", "dtype": "float32"}
    config = parser.parse_object(
        {"index": {"class_path": "TorchFlatRetriever", "init_args": arguments}}
    )
    made = parser.instantiate(config).index
    assert isinstance(made, TorchFlatRetriever)
    assert len(made.search(["w1"], 2)[0]) == 2


def test_compressed_vectors_are_decoded_with_a_warning(
    corpus: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(400, 16)
    index = faiss.index_factory(16, "SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    decoded, original = stored_vectors(index)
    assert not original
    np.testing.assert_allclose(decoded, vectors, atol=0.02)
    folder = build_index(corpus, corpus.parent / "index", dim=64)
    monkeypatch.setattr(torch_search, "stored_vectors", lambda i: (stored_vectors(i)[0], False))
    with caplog.at_level(logging.WARNING):
        TorchFlatRetriever(str(folder), device="cpu")
    assert "compressed vectors" in caplog.text


@pytest.mark.parametrize("factory", ["Flat", "SQfp16"])
def test_a_mapped_file_is_a_view_too(tmp_path: Path, factory: str) -> None:
    index = faiss.index_factory(16, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(clustered(400, 16))
    index.add(clustered(400, 16))
    faiss.write_index(index, str(tmp_path / "vectors"))
    mapped = faiss.read_index(str(tmp_path / "vectors"), faiss.IO_FLAG_MMAP_IFC)
    np.testing.assert_array_equal(stored_vectors(mapped)[0], stored_vectors(index)[0])


def test_a_flat_index_of_16_bits_is_a_view_too() -> None:
    vectors = clustered(400, 16)
    index = faiss.index_factory(16, "SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    view, original = stored_vectors(index)
    assert not original
    assert view.dtype == np.float16
    np.testing.assert_array_equal(view.astype(np.float32), index.reconstruct_n(0, 400))
    assert np.shares_memory(view, stored_vectors(index)[0])


def test_a_view_of_a_flat_index_is_not_a_copy() -> None:
    index = new_index(4)
    index.add(np.ones((3, 4), np.float32))
    view, original = stored_vectors(index)
    assert original
    view[1] = 7
    assert index.reconstruct(1).tolist() == [7, 7, 7, 7]
    alive = weakref.ref(index)
    del index
    assert alive() is not None
    assert view.sum() == 4 + 28 + 4
    del view
    assert alive() is None


def test_what_cannot_be_is_refused(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match="'ip', 'l2', got 'cosine'"):
        TorchFlatIndex(ones, "cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got float64 of shape"):
        TorchFlatIndex(ones.astype(np.float64))
    with pytest.raises(ValueError, match="N at least 1, got float32 of shape"):
        TorchFlatIndex(ones[:0])
    with pytest.raises(ValueError, match="NaN or infinity in vector 1"):
        TorchFlatIndex(np.array([[1, 2], [np.nan, 1]], np.float32))
    with pytest.raises(ValueError, match="block_mb must be at least 1, got 0"):
        TorchFlatIndex(ones, block_mb=0)
    with pytest.raises(ValueError, match=r"dtype must be one of auto, .* got 'int8'"):
        TorchFlatIndex(ones, device="cpu", dtype="int8")  # type: ignore[arg-type]
    for device in ("cuda:99", "gpu", "cuda:x"):
        with pytest.raises(ValueError, match=rf"CUDA devices that torch sees, got '{device}'"):
            TorchFlatIndex(ones, device=device)
    with pytest.raises(ValueError, match="at least one device"):
        TorchFlatIndex(ones, device=[])
    index = TorchFlatIndex(ones, device="cpu")
    for queries, k in ((ones[:, :2], 1), (ones, 0), (ones[0], 1)):
        with pytest.raises(ValueError, match=r"queries must have shape \(Q, 4\)"):
            index.search(queries, k)
    with pytest.raises(ValueError, match="queries must be finite"):
        index.search(np.full((1, 4), np.inf, np.float32), 1)
    assert index.search(ones[:0], 2)[1].shape == (0, 2)
    monkeypatch.setattr(torch_search, "load_retriever", lambda *_: namedtuple("BM25", "x")(1))
    with pytest.raises(ValueError, match=r"must hold a dense index, got a BM25"):
        TorchFlatRetriever(str(corpus.parent))


def test_a_device_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from research_rl.envs.retrieval.vectors.torch_products import check_room

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**31))
    with pytest.raises(ValueError, match=r"cuda:1 must have 30.0 GiB free .* got 1.0 GiB"):
        check_room(torch.device("cuda", 1), 30 * 2**30)


def test_float32_that_torch_may_shorten_has_a_wider_bound() -> None:
    from research_rl.envs.retrieval.vectors.torch_products import input_rounding

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert input_rounding(torch.float32) == 0
        torch.set_float32_matmul_precision("high")
        assert input_rounding(torch.float32) > 2**-10
        assert input_rounding(torch.float16) == 0
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cuda_device_finds_what_faiss_finds(dtype: Any) -> None:
    vectors, queries = clustered(50_000, 128), clustered(70, 128, seed=5)
    for metric in METRICS:
        _, places = TorchFlatIndex(vectors, metric, "cuda", dtype).search(queries, 10)
        np.testing.assert_array_equal(places, by_sorting(vectors, queries, 10, metric)[1])
