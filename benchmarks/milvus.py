"""Milvus beside FAISS in the process: time to fill and to search, and what larger corpora need.

The same made-up vectors of unit length go into a flat index folder and into milvus-lite, in this
process, or into a cluster with --uri. The second table is arithmetic: bytes of vectors and texts,
and how many machines hold them.

    python benchmarks/milvus.py --passages 50000 --dim 384
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.retrieval import build_index, build_milvus, load_retriever
from research_rl.envs.retrieval.encoders.base import Encoder, Vectors
from research_rl.envs.retrieval.index import open as opening
from research_rl.envs.retrieval.search.milvus import is_installed
from research_rl.envs.types import Retriever

BYTES = {
    "flat": lambda d: 4 * d,
    "16 bits": lambda d: 2 * d,
    "ivf-sq8": lambda d: d + 8,
    "rabitq": lambda d: d // 8 + 16,
}
TEXT, ROOM = 700, 0.7  # bytes of a passage; share of a machine's memory that may be filled


class Made(Encoder):
    """A random unit vector for each number; costs nothing."""

    name = "made"

    def __init__(self, dim: int) -> None:
        self._dim = dim

    @property
    def dim(self) -> int:
        return self._dim

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        numbers = [int(text.split()[0]) for text in texts]
        made = [np.random.default_rng(number).standard_normal(self._dim) for number in numbers]
        vectors = np.stack(made).astype(np.float32)
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    encode_passages = encode_queries

    def settings(self) -> dict[str, Any]:
        return {}


def milliseconds(retriever: Retriever, queries: Sequence[str], batch: int, rounds: int) -> float:
    """Return the median time of a search of ``batch`` queries."""
    times = []
    for number in range(rounds):
        asked = [f"{queries[(number * batch + i) % len(queries)]}" for i in range(batch)]
        start = time.perf_counter()
        retriever.search(asked, 5)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def measure(args: argparse.Namespace, work: Path) -> list[list[str]]:
    """Fill and search both."""
    corpus = work / "c.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        for number in range(args.passages):
            contents = f"{number} is a passage. " + "Its text is as long as it is. " * 20
            file.write(json.dumps({"id": str(number), "contents": contents}) + "\n")
    encoder = Made(args.dim)
    opening.make_encoder = lambda *_, **__: encoder  # type: ignore[assignment]
    where = args.uri or "milvus-lite"
    ways = {
        "FAISS, flat": lambda out: build_index(corpus, out, encoder=encoder),
        f"Milvus ({where}), {args.type}": lambda out: build_milvus(
            corpus, out, encoder, uri=args.uri, index_type=args.type
        ),
    }
    queries = [str(n) for n in range(0, args.passages, max(1, args.passages // 640))]
    lines, wanted = [], None
    for number, (name, build) in enumerate(ways.items()):
        start = time.perf_counter()
        folder = build(work / str(number))
        seconds = time.perf_counter() - start
        retriever = load_retriever(folder, cache_size=0)
        found = [[p.id for p in row] for row in retriever.search(queries[:64], 5)]
        wanted = wanted or found
        same = statistics.mean(len(set(a) & set(b)) / 5 for a, b in zip(found, wanted, strict=True))
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
        times = [milliseconds(retriever, queries, batch, args.rounds) for batch in (1, 64)]
        row = [name, f"{seconds:.0f}", f"{size:.0f}", f"{same:.3f}", *(f"{t:.1f}" for t in times)]
        lines.append(row)
    return lines


def plan(dim: int, memory: float) -> list[list[str]]:
    """Return how many machines hold the vectors and texts of large corpora."""
    lines = []
    for count in (21_015_324, 100_000_000, 1_000_000_000):
        row = [f"{count:,}", f"{count * TEXT / 1e9:,.0f}"]
        for size in BYTES.values():
            held = count * size(dim) / 2**30
            row.append(f"{held:,.0f} / {max(1, -(-held // (ROOM * memory))):.0f}")
        lines.append(row)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--passages", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--type", default="flat", help="of Milvus's index")
    parser.add_argument("--uri", help="of a cluster (default: milvus-lite)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--memory", type=float, default=128.0, help="GiB of a machine, for the plan"
    )
    args = parser.parse_args()
    if is_installed():
        with tempfile.TemporaryDirectory() as work:
            lines = measure(args, Path(work))
        head = ["", "build s", "MB", "recall@5", "ms, 1 query", "ms, 64 queries"]
        print(table([head, *lines]), end="\n\n")
    else:
        sys.stdout.write("skipped the first table: needs pip install -e '.[milvus]'\n\n")
    names = [f"{name}: GiB / machines" for name in BYTES]
    print(table([["passages x 768", "GB of text", *names], *plan(768, args.memory)]))


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines as a Markdown table."""
    drawn = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in drawn)


if __name__ == "__main__":
    main()
