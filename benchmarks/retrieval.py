"""What each index type costs and finds: recall@5, queries/s at three batch sizes, memory, build.

Vectors are made up, but not white noise: like a sentence encoder's they share a common direction,
lie in topics of very different sizes, come in small groups (the passages of one article) and fill
some dimensions more than others; a query belongs to an article as its passages do, with more of its
own. Every type runs in this process, one call after the other in turn, and each figure is the
median of the rounds. Peak memory is that of a process of its own that opens the index and searches.

    python benchmarks/retrieval.py --folder runs/scale --json runs/scale.json    # about 15 minutes
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import faiss
import numpy as np
import numpy.typing as npt
from faiss.contrib.ivf_tools import add_preassigned

from research_rl.envs.retrieval.encoders.base import Vectors
from research_rl.envs.retrieval.torch_flat import TorchFlatIndex, stored_vectors
from research_rl.envs.retrieval.vectors.faiss_types import blas_for, factory_string, training_rows

K = 5
BATCHES = (1, 64, 512)
BLOCK = 50_000
TOPICS, SIBLINGS = 2_000, 4
DEFAULT = "flat, FAISS's default"


@dataclass(frozen=True)
class Way:
    """One way to search: an index type and how wide it looks.

    Args:
        kind: what ``research index build --type`` calls it; "torch" is the flat one through torch.
        setting: nprobe or efSearch; 0 where there is nothing to set.
        blas: let FAISS multiply matrices for every batch, as ``DenseRetriever`` does.
    """

    kind: str
    setting: int = 0
    blas: bool = True

    @property
    def name(self) -> str:
        """What the table calls it."""
        if not self.blas:
            return DEFAULT
        search_width = "efSearch" if self.kind == "hnsw" else "nprobe"
        return f"{self.kind}, {search_width} {self.setting}" if self.setting else self.kind


WAYS = (
    Way("flat", blas=False),
    Way("flat"),
    Way("torch"),
    Way("sq8"),
    *(Way("ivf", n) for n in (8, 32, 128)),
    *(Way("ivf-sq8", n) for n in (8, 32, 64, 128)),
    *(Way("ivf-pq", n) for n in (32, 128)),
    *(Way("rabitq", n) for n in (32, 128)),
    *(Way("hnsw", n) for n in (32, 128, 512)),
)
KINDS = tuple(dict.fromkeys(way.kind for way in WAYS))


def clustered(count: int, dim: int, seed: int, own: float) -> Iterator[Vectors]:
    """Yield blocks of vectors of length 1; ``own`` is how much a vector differs from its article.

    The articles depend on ``count`` alone, so passages and queries share them.
    """
    world = np.random.default_rng(0)
    spread = (1 + np.arange(dim)) ** -0.25
    common = 0.7 * _directions(world, 1, spread)
    topics = _directions(world, TOPICS, spread)
    sizes = 1 / (1 + np.arange(TOPICS)) ** 0.7
    rng = np.random.default_rng(seed)
    for start in range(0, count, BLOCK):
        number = np.arange(start, min(start + BLOCK, count)) // SIBLINGS
        articles, where = np.unique(number, return_inverse=True)
        article = np.random.default_rng([1, start])
        topic = article.choice(TOPICS, len(articles), p=sizes / sizes.sum())
        middle = topics[topic] + 0.8 * _directions(article, len(articles), spread)
        vectors = common + middle[where] + own * _directions(rng, len(number), spread)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield vectors.astype(np.float32)


def _directions(rng: np.random.Generator, count: int, spread: npt.NDArray[np.float64]) -> Vectors:
    """Random vectors of length about 1 that fill dimensions by ``spread``."""
    drawn = rng.standard_normal((count, len(spread)), dtype=np.float32)
    return drawn * (spread / np.linalg.norm(spread)).astype(np.float32)


def make_vectors(folder: Path, count: int, dim: int, asked: int) -> tuple[Vectors, Vectors]:
    """Return passages, memory-mapped, and queries about articles drawn from all of them."""
    path = folder / "vectors.npy"
    if not path.exists():
        part = folder / "part.npy"
        out = np.lib.format.open_memmap(part, "w+", np.float32, (count, dim))
        start = 0
        for block in clustered(count, dim, seed=2, own=0.6):
            out[start : start + len(block)] = block
            start += len(block)
        out.flush()
        part.rename(path)
    chosen = np.random.default_rng(4).choice(count, asked, replace=False)
    chosen.sort()
    queries = np.empty((asked, dim), np.float32)
    start = 0
    for block in clustered(count, dim, seed=3, own=0.9):
        mine = (chosen >= start) & (chosen < start + len(block))
        queries[mine] = block[chosen[mine] - start]
        start += len(block)
    vectors: Vectors = np.load(path, mmap_mode="r")
    return vectors, np.random.default_rng(5).permutation(queries)


def build(kind: str, vectors: Vectors, folder: Path) -> float:
    """Write ``kind``.faiss; return seconds. IVF types share centroids and assignments."""
    count, dim = vectors.shape
    factory = factory_string(kind, count, dim).removeprefix(f"RR{dim},")  # mixed well as they are
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    started = time.perf_counter()
    lists = 0.0
    if kind.startswith(("ivf", "rabitq")):
        ivf = faiss.extract_index_ivf(index)
        centroids, assigned, lists = quantizer(ivf, vectors, folder)
        ivf.quantizer.add(centroids)
        started = time.perf_counter()
    index.train(sample(vectors, training_rows(index, count) or 1))
    if kind == "hnsw":
        index.hnsw.efConstruction = 200
    for start in range(0, count, BLOCK):
        block = np.ascontiguousarray(vectors[start : start + BLOCK])
        if lists:
            ids = np.arange(start, start + len(block))
            add_preassigned(ivf, block, assigned[start : start + BLOCK], ids)
            index.ntotal = ivf.ntotal = start + len(block)
        else:
            index.add(block)
    faiss.write_index(index, str(folder / f"{kind}.faiss"))
    return time.perf_counter() - started + lists


def sample(vectors: Vectors, count: int) -> Vectors:
    """Return ``count`` of the vectors, evenly spread."""
    return np.ascontiguousarray(vectors[:: max(1, len(vectors) // count)][:count])


def quantizer(ivf: Any, vectors: Vectors, folder: Path) -> tuple[Any, Any, float]:
    """Return centroids, the list of every vector, and the seconds that both took."""
    path = folder / "lists.npz"
    if not path.exists():
        started = time.perf_counter()
        flat = faiss.index_factory(ivf.d, f"IVF{ivf.nlist},Flat", faiss.METRIC_INNER_PRODUCT)
        flat.train(sample(vectors, training_rows(flat, len(vectors))))
        centroids = flat.quantizer.reconstruct_n(0, ivf.nlist)
        blocks = range(0, len(vectors), BLOCK)
        found = [flat.quantizer.search(vectors[b : b + BLOCK], 1)[1][:, 0] for b in blocks]
        seconds = time.perf_counter() - started
        np.savez(path, centroids=centroids, assigned=np.concatenate(found), seconds=seconds)
    kept = np.load(path)
    return kept["centroids"], kept["assigned"], float(kept["seconds"])


def open_way(way: Way, folder: Path, opened: dict[str, Any]) -> Callable[[Vectors], Any]:
    """Return a function that searches that way; indexes already opened are shared."""
    kind = "flat" if way.kind == "torch" else way.kind
    if kind not in opened:
        opened[kind] = faiss.read_index(str(folder / f"{kind}.faiss"))
    index = opened[kind]
    if way.kind == "torch":
        index = TorchFlatIndex(stored_vectors(index)[0], device="cpu")

    def search(queries: Vectors) -> Any:
        if way.kind == "hnsw":
            index.hnsw.efSearch = way.setting
        elif way.setting:
            faiss.extract_index_ivf(index).nprobe = way.setting
        with blas_for(len(queries)) if way.blas else nullcontext():
            return index.search(queries, K)[1]

    return search


def memory(way: Way, folder: Path) -> float:
    """Return by how many GB opening and searching raises the peak of a new process."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import retrieval as r; r.peak(sys.argv[2:])"
    )
    here = str(Path(__file__).parent)
    arguments = [way.kind, str(way.setting), str(int(way.blas)), str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", code, here, *arguments], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def peak(arguments: list[str]) -> None:
    """Print the growth of this process's peak memory in GB."""
    kind, setting, blas, folder = arguments
    queries = np.load(Path(folder) / "queries.npy")
    if kind == "torch":
        importlib.import_module("torch")
    before = _high_water()
    search = open_way(Way(kind, int(setting), blas == "1"), Path(folder), {})
    for batch in BATCHES[:2]:
        search(queries[:batch])
    print((_high_water() - before) / 1e6)


def _high_water() -> int:
    """Largest memory this process ever had, in kB; ``ru_maxrss`` would count its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def timings(ways: tuple[Way, ...], folder: Path, queries: Vectors, rounds: int) -> dict[Any, Any]:
    """Return the ms of each way and batch size, round by round, all ways taking turns."""
    opened: dict[str, Any] = {}
    searches = {way: open_way(way, folder, opened) for way in ways}
    found = defaultdict(list)
    for turn in range(rounds):
        for way, search in searches.items():
            for batch in BATCHES:
                calls = 8 if batch == 1 else 1
                first = turn * 8 % (len(queries) - max(batch, calls))
                started = time.perf_counter()
                for call in range(calls):
                    search(queries[first + call : first + call + batch])
                found[way, batch].append(1000 * (time.perf_counter() - started) / calls)
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return found


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return one row a way."""
    ways = tuple(way for way in WAYS if way.kind in {"flat", *args.kinds})
    vectors, queries = make_vectors(folder, args.passages, args.dim, args.queries)
    np.save(folder / "queries.npy", queries)
    seconds_file = folder / "seconds.json"
    seconds = json.loads(seconds_file.read_text()) if seconds_file.exists() else {}
    for kind in dict.fromkeys(way.kind for way in ways if way.kind != "torch"):
        if kind not in seconds:
            seconds[kind] = build(kind, vectors, folder)
            seconds_file.write_text(json.dumps(seconds))
            print(f"built {kind}: {seconds[kind]:.0f} s", file=sys.stderr)
    peaks = {way: memory(way, folder) for way in ways}
    opened: dict[str, Any] = {}
    exact = open_way(Way("flat"), folder, opened)(queries)
    recall = {}
    for way in ways:
        found = exact if way.kind in ("flat", "torch") else open_way(way, folder, opened)(queries)
        both = zip(exact.tolist(), found.tolist(), strict=True)
        recall[way] = statistics.mean(len(set(a) & set(b)) / K for a, b in both)
    opened.clear()
    times = timings(ways, folder, queries, args.rounds)
    rows = []
    for way in ways:
        kind = "flat" if way.kind == "torch" else way.kind
        row = {"way": way.name, "kind": way.kind, "setting": way.setting, "recall": recall[way]}
        row |= {"build_s": seconds[kind], "peak_gb": peaks[way]}
        row |= {"disk_gb": (folder / f"{kind}.faiss").stat().st_size / 1e9}
        row |= {f"ms_{batch}": statistics.median(times[way, batch]) for batch in BATCHES}
        row |= {f"ms_{batch}_rounds": times[way, batch] for batch in BATCHES}
        rows.append(row)
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, and whether the bars are reached."""
    heads = "".join(f" queries/s, {batch} | ms |" for batch in BATCHES)
    out = [f"| index | recall@{K} |{heads} GB on disk | GB peak | build s |"]
    out.append("|---" * (5 + 2 * len(BATCHES)) + "|")
    for row in rows:
        cells = [row["way"], f"{row['recall']:.3f}"]
        for batch in BATCHES:
            ms = row[f"ms_{batch}"]
            cells += [f"{1000 * batch / ms:.0f}", f"{ms:.3g}"]
        cells += [f"{row['disk_gb']:.2f}", f"{row['peak_gb']:.2f}", f"{row['build_s']:.0f}"]
        out.append("| " + " | ".join(cells) + " |")
    by_name = {row["way"]: row for row in rows}
    default = by_name[DEFAULT]["ms_64"]
    good = [r for r in rows if r["kind"] == "ivf-sq8" and r["recall"] >= 0.94]
    ours = default / by_name["flat"]["ms_64"]
    out.append(f"\nbatch 64, flat: {ours:.1f} times as fast as {DEFAULT} (bar: 5)")
    if good:
        best = min(good, key=lambda row: float(row["ms_64"]))
        factor = default / best["ms_64"]
        out.append(f"batch 64, {best['way']}: {factor:.0f} times (bar: 20 at recall 0.94)")
    else:
        out.append("no ivf-sq8 setting reaches recall 0.94")
    return "\n".join(out)


def main() -> None:
    """Measure every way and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1024, help="also the recall's sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=KINDS[:-1],
        help="index types; hnsw only if named, for it takes half an hour to build",
    )
    parser.add_argument("--folder", type=Path, help="keep indexes here, and use those that are")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    if args.queries <= max(BATCHES):
        parser.error(f"--queries must be more than {max(BATCHES)}, got {args.queries}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = measure(args, folder)
    cores = f"{os.cpu_count()} cores, {os.environ['OMP_NUM_THREADS']} thread"
    print(f"{args.passages} x {args.dim}, {cores}, FAISS {faiss.__version__}")
    print(report(rows))
    if args.json:
        machine = {"platform": platform.platform(), "cores": os.cpu_count()}
        found = {"machine": machine, "passages": args.passages, "dim": args.dim, "rows": rows}
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
