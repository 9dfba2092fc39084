"""Builds an index of a million vectors in bounded memory, and measures what the process took.

The encoder makes random unit vectors from a hash of the text, so that nothing but reading, writing
and indexing is measured. Each build runs in a process of its own; its peak is the largest resident
set that the kernel has seen (VmHWM), the interpreter and its libraries included.

    python benchmarks/index_build.py --count 1000000 --dim 384 --memory 1GB
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.retrieval import Encoder, Storage, build_index
from research_rl.envs.retrieval.encoders.base import Vectors
from research_rl.envs.retrieval.index.estimate import parse_size
from research_rl.envs.retrieval.index.manifest import read_manifest


class HashEncoder(Encoder):
    """Clustered random vectors of length 1: a centre of 1,000 and noise, both from the text."""

    name = "hash"

    def __init__(self, dim: int) -> None:
        self._dim = dim
        rng = np.random.default_rng(0)
        self._centres = rng.standard_normal((1000, dim)).astype(np.float32)
        self._noise = rng.standard_normal(1 << 20).astype(np.float32)

    @property
    def dim(self) -> int:
        return self._dim

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        numbers = np.array([hash_of(text) for text in texts], np.uint64)
        starts = (numbers >> np.uint64(20)) % np.uint64(len(self._noise) - self._dim)
        places = starts.astype(np.int64)[:, None] + np.arange(self._dim)
        vectors = self._centres[(numbers % np.uint64(1000)).astype(np.int64)] + self._noise[places]
        made: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return made

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        return self.encode_queries(texts)

    def settings(self) -> dict[str, Any]:
        return {"dim": self._dim}


def hash_of(text: str) -> int:
    """Return 64 bits that depend on nothing but the first word, so queries resemble passages."""
    word = text.split()[0] if text else ""
    return int(word) * 0x9E3779B97F4A7C15 % 2**64 if word.isdecimal() else 1


def write_corpus(path: Path, count: int) -> None:
    """Write ``count`` passages of some 100 bytes."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            text = f"{i} is the number of this passage, which says nothing else of any use"
            file.write(json.dumps({"id": str(i), "contents": text}) + "\n")


def build(args: argparse.Namespace) -> None:
    """Build in this process and print what it took, as JSON."""
    encoder, storage = HashEncoder(args.dim), Storage(index_type=args.type, memory=args.memory)
    start = time.perf_counter()
    said: list[str] = []
    folder = build_index(
        args.corpus, args.out, encoder=encoder, storage=storage, report=said.append
    )
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    manifest = read_manifest(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    row = {"type": manifest["index"]["type"], "seconds": round(seconds), "peak_mb": peak // 1000}
    row |= {"disk_mb": size // 10**6, "recall": manifest.get("recall", {}).get("recall")}
    print(json.dumps(row | {"estimate": said[0]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--count", type=int, default=1_000_000)
    add("--dim", type=int, default=384)
    add("--memory", default="1GB", help="what each build may take")
    add("--types", nargs="+", default=["flat", "sq8", "ivf-sq8"])
    add("--folder", type=Path, help="where to work (a temporary folder)")
    add("--type", help=argparse.SUPPRESS)
    add("--corpus", type=Path, help=argparse.SUPPRESS)
    add("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.type:
        build(args)
        return
    limit = parse_size(args.memory) / 1e6
    print("| type | build s | peak MB | limit MB | disk MB | recall@5 |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        corpus = Path(folder) / "corpus.jsonl"
        write_corpus(corpus, args.count)
        for name in args.types:
            out = Path(folder) / name.replace(",", "-")
            command = [sys.executable, __file__, "--type", name, "--dim", str(args.dim)]
            command += ["--memory", args.memory, "--corpus", str(corpus), "--out", str(out)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout)
            sys.stderr.write(row["estimate"] + "\n")
            recall = "" if row["recall"] is None else f"{row['recall']:.3f}"
            cells = [row["type"], row["seconds"], row["peak_mb"], int(limit), row["disk_mb"]]
            print("| " + " | ".join(map(str, [*cells, recall])) + " |", flush=True)
            assert row["peak_mb"] <= limit, "the build took more memory than it may"


if __name__ == "__main__":
    main()
