"""FAISS on GPUs: which calls it gets, what is said where it cannot be had."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")

from research_rl.envs.retrieval import build_index, load_retriever  # noqa: E402
from research_rl.envs.retrieval import faiss_gpu as gpu  # noqa: E402
from research_rl.envs.retrieval.faiss_gpu import GpuFaissRetriever, GpuIndex, to_gpu  # noqa: E402
from research_rl.envs.retrieval.vectors import faiss_types as faiss_index  # noqa: E402
from research_rl.envs.retrieval.vectors.faiss_types import Metric, new_index  # noqa: E402

NO_CUDA = not hasattr(faiss, "StandardGpuResources")


class Clone:
    """What stands for the copy on a device: the CPU's index in half precision, if so wished."""

    def __init__(self, index: Any, fp16: bool) -> None:
        vectors = index.reconstruct_n(0, index.ntotal)
        kept = vectors.astype(np.float16).astype(np.float32) if fp16 else vectors
        self.index = faiss.IndexFlat(index.d, index.metric_type)
        self.index.add(kept)
        self.widths: list[int] = []

    def search(self, queries: Any, k: int) -> Any:
        assert k <= gpu.MAX_K
        self.widths.append(k)
        return self.index.search(queries, k)


class FakeFaiss(SimpleNamespace):
    """The module faiss with the names that a build with CUDA has, and a list of the calls."""

    def __init__(self, count: int, error: str = "") -> None:
        names = {name: getattr(faiss, name) for name in dir(faiss) if not hasattr(type(self), name)}
        super().__init__(**names)
        self.count, self.error, self.calls = count, error, []

    def _clone(self, name: str, where: Any, index: Any, options: Any) -> Clone:
        if self.error:
            raise RuntimeError(self.error)
        self.calls.append((name, where, vars(options)))
        return Clone(index, options.useFloat16)

    StandardGpuResources = type("StandardGpuResources", (), {})
    GpuClonerOptions = type("GpuClonerOptions", (SimpleNamespace,), {})
    GpuMultipleClonerOptions = type("GpuMultipleClonerOptions", (SimpleNamespace,), {})

    def get_num_gpus(self) -> int:
        return self.count

    def index_cpu_to_gpu(self, resources: Any, device: int, index: Any, options: Any) -> Clone:
        assert isinstance(resources, self.StandardGpuResources)
        assert isinstance(options, self.GpuClonerOptions)
        return self._clone("one", device, index, options)

    def index_cpu_to_all_gpus(self, index: Any, co: Any = None, ngpu: int = -1) -> Clone:
        assert isinstance(co, self.GpuMultipleClonerOptions)
        return self._clone("all", None, index, co)

    def index_cpu_to_gpus_list(self, index: Any, co: Any = None, gpus: Any = None) -> Clone:
        assert isinstance(co, self.GpuMultipleClonerOptions)
        return self._clone("list", gpus, index, co)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a FAISS with that many devices and put it where ours looks for one."""

    def install(count: int, error: str = "") -> FakeFaiss:
        module = FakeFaiss(count, error)
        monkeypatch.setattr(gpu, "import_faiss", lambda: module)
        monkeypatch.setattr(faiss_index, "import_faiss", lambda: module)
        return module

    return install


def vectors(n: int = 300, dim: int = 8) -> Any:
    return np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)


def flat(metric: Metric = "ip", n: int = 300) -> Any:
    index = new_index(8, metric)
    index.add(vectors(n))
    return index


@pytest.mark.parametrize(
    ("count", "devices", "shard", "call"),
    [
        (1, None, True, ("one", 0, {"useFloat16": True})),
        (4, [2], True, ("one", 2, {"useFloat16": True})),
        (4, None, True, ("all", None, {"useFloat16": True, "shard": True})),
        (4, [3, 1], False, ("list", [3, 1], {"useFloat16": True, "shard": False})),
    ],
)
def test_each_way_onto_devices(fake: Any, count: int, devices: Any, shard: bool, call: Any) -> None:
    module = fake(count)
    to_gpu(flat(), devices, fp16=True, shard=shard)
    assert module.calls == [call]


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("fp16", [False, True])
def test_the_answers_are_those_of_the_cpu(fake: Any, metric: Metric, fp16: bool) -> None:
    fake(1)
    index = flat(metric)
    moved = GpuIndex(index, fp16=fp16)
    assert (moved.ntotal, moved.d, moved.metric_type) == (300, 8, index.metric_type)
    for k in (1, 5, 299, 310):
        scores, places = moved.search(vectors()[:9], k)
        wanted, ids = index.search(vectors()[:9], k)
        np.testing.assert_array_equal(places, ids)
        np.testing.assert_allclose(scores, wanted, atol=1e-5)


def test_more_than_the_kernels_select_goes_to_the_cpu(fake: Any) -> None:
    fake(1)
    index = flat(n=3000)
    moved = GpuIndex(index)
    for k, widths in ((2048, [2048]), (2049, [2048]), (3000, [2048])):
        _, places = moved.search(vectors()[:3], k)
        np.testing.assert_array_equal(places, index.search(vectors()[:3], k)[1])
        assert moved._gpu.widths == widths


def test_lists_too_short_to_fill_a_row_are_not_the_end(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(1)
    index = faiss.index_factory(8, "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors())
    index.add(vectors())
    monkeypatch.setattr(gpu, "to_gpu", lambda index, *_: index)
    moved = GpuIndex(index)
    assert not faiss_index.is_exact(moved)
    assert faiss_index.is_exact(GpuIndex(flat()))
    wanted = flat().search(vectors()[:5], 290)[1]
    np.testing.assert_array_equal(moved.search(vectors()[:5], 290)[1], wanted)


def test_a_folder_answers_as_it_does_on_the_cpu(fake: Any, tmp_path: Path) -> None:
    rows = [json.dumps({"id": str(i), "contents": f"w{i % 37} v{i % 11}"}) for i in range(300)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows))
    folder = str(build_index(tmp_path / "corpus.jsonl", tmp_path / "index", dim=64))
    module = fake(2)
    retriever = GpuFaissRetriever(folder, devices=[0, 1], fp16=True)
    queries = ["w3 v2", "v9", "", "w3 v2"]
    found, wanted = retriever.search(queries, 4), load_retriever(folder).search(queries, 4)
    assert [[p.id for p in row] for row in found] == [[p.id for p in row] for row in wanted]
    again = pickle.loads(pickle.dumps(retriever))
    assert again.search(queries, 4) == found
    assert [call[0] for call in module.calls] == ["list", "list"]


def test_what_cannot_be_is_refused(fake: Any) -> None:
    fake(0)
    with pytest.raises(RuntimeError, match="NVIDIA GPU must be there, got none"):
        to_gpu(flat())
    fake(2)
    for devices in ([2], [0, 0], [], [-1]):
        with pytest.raises(ValueError, match="different numbers below 2, at least one, got"):
            to_gpu(flat(), devices)
    many = faiss.index_factory(8, "IVF3000,Flat")
    many.nprobe = 2049
    with pytest.raises(ValueError, match="nprobe must be at most 2048 on a GPU, got 2049"):
        to_gpu(many)
    fake(1, error="This index type is not implemented on GPU.")
    hnsw = faiss.IndexHNSWFlat(8, 4)
    with pytest.raises(ValueError, match="got IndexHNSWFlat of 0 x 8: This index type is not"):
        to_gpu(hnsw)


@pytest.mark.skipif(not NO_CUDA, reason="this FAISS knows CUDA")
def test_a_faiss_without_cuda_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"pip install -e '\.\[gpu\]', or use Torch"):
        to_gpu(flat())
    with pytest.raises(ImportError, match="built with CUDA"):
        GpuFaissRetriever(str(tmp_path))


@pytest.mark.skipif(NO_CUDA or not faiss.get_num_gpus(), reason="needs faiss-gpu and an NVIDIA GPU")
@pytest.mark.parametrize("fp16", [False, True])
def test_a_real_device_finds_what_the_cpu_finds(fp16: bool) -> None:
    index = flat(n=50_000)
    _, places = GpuIndex(index, fp16=fp16).search(vectors()[:70], 10)
    np.testing.assert_array_equal(places, index.search(vectors()[:70], 10)[1])


@pytest.mark.parametrize("factory", ["IVF8,SQ8", "RR16,IVF8,RaBitQ", "Flat"])
@pytest.mark.parametrize("count", [0, 2])
def test_lists_are_found_on_the_gpus_there_are(
    factory: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[Any] = []

    def all_gpus(index: Any) -> Any:
        moved.append(index)
        return index

    names = {name: getattr(faiss, name) for name in dir(faiss)}
    fake = SimpleNamespace(
        **{**names, "get_num_gpus": lambda: count, "index_cpu_to_all_gpus": all_gpus}
    )
    vectors = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
    alone, helped = new_index(16, "ip", factory), new_index(16, "ip", factory)
    alone.train(vectors)
    monkeypatch.setattr(faiss_index, "import_faiss", lambda: fake)
    with faiss_index.clustering_on_gpus(helped):
        helped.train(vectors)
    expected = 1 if count and "IVF" in factory else 0
    assert [index.ntotal for index in moved] == [8] * expected  # k-means leaves its centres there
    assert faiss.serialize_index(helped).tobytes() == faiss.serialize_index(alone).tobytes()
