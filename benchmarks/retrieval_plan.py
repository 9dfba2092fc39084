"""What 21,015,324 x 768 would take, reckoned from what ``benchmarks/retrieval.py`` measured.

Arithmetic, no measurement: bytes follow from the formats. Times of a CPU grow with vectors x
dimension from the measured ones, at the same share of lists searched (IVF gets four times the
square root of the passages as lists, so nprobe grows with them), and so the recall is the measured
one too. A walk in a graph grows with the logarithm of the vectors, and so does putting one in; its
recall at the same efSearch is somewhat lower among more. Times of a GPU are bytes over bandwidth
and operations over speed.

    python benchmarks/retrieval_plan.py scale.json
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

from research_rl.envs.retrieval.vectors.faiss_types import factory_string

PASSAGES, DIM = 21_015_324, 768
PASSAGE_TOKENS = 130  # 100 words
ENCODER_WEIGHTS = 85e6  # those of a BERT-base that multiply: all but the embeddings
GPU_FLOPS, GPU_BANDWIDTH = 790e12, 4.3e12  # one H200, dense bfloat16 and memory, as measured
GPU_SHARE = 0.4  # of the GPU's speed that an encoder reaches
BATCHES = (1, 64)
OFFSETS = 16  # bytes that say where a passage lies in the corpus


def lists_of(kind: str, count: int, dim: int) -> int:
    """Return how many lists an IVF type gets, 0 for other types."""
    found = re.search(r"IVF(\d+)", factory_string(kind, count, dim))
    return int(found[1]) if found else 0


def bytes_of(kind: str, dim: int) -> float:
    """Return what one vector takes in the index, in bytes."""
    ids = 8 if kind in ("ivf", "ivf-sq8", "ivf-pq", "rabitq") else 0
    links = 1.1 * 4 * 64 if kind == "hnsw" else 0
    codes = {"sq8": dim, "ivf-sq8": dim, "ivf-pq": dim / 8, "rabitq": dim / 8 + 8}
    return codes.get(kind, 4 * dim) + ids + links


def assignments(count: int, dim: int, lists: int) -> float:
    """Return the products of ten rounds of k-means on 64 vectors a list, and of assigning all."""
    return (10 * 64 * lists + count) * lists * dim


def cpu_rows(measured: dict[str, Any]) -> list[list[str]]:
    """Return a row a way: size, recall, build time and latencies on one core of that machine."""
    count, dim = measured["passages"], measured["dim"]
    more = PASSAGES * DIM / (count * dim)
    rows = []
    for row in measured["rows"]:
        kind, setting = row["kind"], row["setting"]
        if kind == "torch" or "default" in row["way"]:
            continue
        lists, were = lists_of(kind, PASSAGES, DIM), lists_of(kind, count, dim)
        longer = DIM / dim * math.log(PASSAGES) / math.log(count)  # a walk in a graph
        grown, slower = more, longer if kind == "hnsw" else more
        if lists:
            grown = assignments(PASSAGES, DIM, lists) / assignments(count, dim, were)
        elif kind == "hnsw":
            grown = longer * PASSAGES / count
        name = f"{kind}, nprobe {setting * lists // were}" if lists else row["way"]
        size = (bytes_of(kind, DIM) + OFFSETS) * PASSAGES + 4 * lists * DIM
        cells = [name, f"{size / 2**30:.1f}", f"{row['recall']:.3f}"]
        cells.append(duration(row["build_s"] * grown))
        cells += [duration(row[f"ms_{batch}"] / 1000 * slower) for batch in BATCHES]
        rows.append(cells)
    return rows


def gpu_rows() -> list[list[str]]:
    """Return a row a format of an exact search on one H200: size and latencies, without the host.

    A search reads the vectors once, multiplies, and writes the scores in float32 and reads them
    twice to select from.
    """
    rows = []
    for name, width in (("flat, float32", 4), ("flat, 16 bits", 2)):
        size = width * PASSAGES * DIM
        cells = [name, f"{size / 2**30:.1f}"]
        for batch in (1, 64, 320):
            speed = GPU_FLOPS if width == 2 else GPU_FLOPS / 16
            multiply = max(size / GPU_BANDWIDTH, 2 * batch * PASSAGES * DIM / speed)
            cells.append(duration(multiply + 3 * 4 * batch * PASSAGES / GPU_BANDWIDTH))
        rows.append(cells)
    return rows


def duration(seconds: float) -> str:
    """Return a time with its unit, two digits."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= (2 if size > 1 else 1) * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{1000 * seconds:.2g}'):g} ms"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def encoding(measured: dict[str, Any]) -> str:
    """Return how long the vectors themselves take to make."""
    work = 2 * ENCODER_WEIGHTS * PASSAGE_TOKENS * PASSAGES
    flat = next(row for row in measured["rows"] if row["way"] == "flat")
    speed = 2 * 512 * measured["passages"] * measured["dim"] / (flat["ms_512"] / 1000)
    gpu = f"{duration(work / (GPU_SHARE * GPU_FLOPS))} on one H200 at {GPU_SHARE:.0%} of its speed"
    core = f"{duration(work / speed)} on one core at the {speed / 1e9:.0f} GFLOP/s"
    return (
        f"Encoding with a BERT-base is {work:.1e} operations: {gpu}, {core} that flat search "
        "reached at batch 512."
    )


def main() -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("measured", type=Path, help="what benchmarks/retrieval.py --json wrote")
    measured = json.loads(parser.parse_args().measured.read_text(encoding="utf-8"))
    latencies = [f"batch {batch}" for batch in BATCHES]
    heads = ["index", "GiB", "recall@5", "build", *latencies]
    print(f"{PASSAGES} x {DIM}, one core\n\n{table(heads, cpu_rows(measured))}\n")
    heads = ["index", "GiB", "batch 1", "batch 64", "batch 320"]
    print(f"{PASSAGES} x {DIM}, one H200\n\n{table(heads, gpu_rows())}\n\n{encoding(measured)}")


if __name__ == "__main__":
    main()
