"""Exact search of Wikipedia's size on one GPU, in both ways: through torch, and by FAISS.

21,015,324 x 768 random vectors (or as many as fit) in half precision on the device; latency of a
search at batch 1, 64 and 320; whether both find the same; and whether a FAISS built for CUDA 12 and
a torch built for CUDA 13 live in one process, whichever is imported first. Needs a CUDA device;
without faiss-gpu only torch is measured.

    python benchmarks/retrieval_gpu.py --json gpu.json
    python benchmarks/retrieval_gpu.py --device cpu --passages 20000    # only to try the script
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from research_rl.envs.retrieval.encoders.base import Vectors
from research_rl.envs.retrieval.torch_flat import TorchFlatIndex
from research_rl.envs.retrieval.vectors.faiss_types import import_faiss

WIKIPEDIA = 21_015_324
BLOCK = 1 << 18
K = 5
BOTH = """
import sys
import numpy as np
x = np.random.default_rng(0).standard_normal((20000, 64)).astype(np.float32)
def torch_search():
    import torch
    y = torch.from_numpy(x).cuda()
    return (y[:9] @ y.T).topk(1).indices[:, 0].tolist()
def faiss_search():
    import faiss
    index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.IndexFlatIP(64))
    index.add(x)
    return index.search(x[:9], 1)[1][:, 0].tolist()
found = [eval(name + "_search()") for name in sys.argv[1:] * 2]
assert all(row == found[0] for row in found), found
"""


def how_many(wanted: int, dim: int, device: torch.device) -> int:
    """Return the largest number of vectors that fits, at most ``wanted``.

    The host keeps them in float32 and the device in 16 bits, once for each way.
    """
    host = 0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    fit = int(host / (4 * dim))
    if device.type == "cuda":
        fit = min(fit, int(0.9 * torch.cuda.mem_get_info(device)[0] / (2 * 2 * dim)))
    return min(wanted, fit)


def make_vectors(count: int, dim: int, device: torch.device) -> Vectors:
    """Return random float32 vectors of length 1, drawn on the device."""
    generator = torch.Generator(device).manual_seed(0)
    vectors = np.empty((count, dim), np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        block = torch.randn((size, dim), generator=generator, device=device)
        vectors[start : start + size] = torch.nn.functional.normalize(block).cpu().numpy()
    return vectors


def latency(search: Callable[[Vectors], Any], queries: Vectors, rounds: int) -> dict[str, float]:
    """Return the median and the 99th percentile of a call in ms; two calls warm up."""
    found = []
    for turn in range(rounds + 2):
        started = time.perf_counter()
        search(queries)
        if turn >= 2:
            found.append(1000 * (time.perf_counter() - started))
    return {"p50_ms": float(np.median(found)), "p99_ms": float(np.percentile(found, 99))}


def faiss_on_device(vectors: Vectors, cuda: bool) -> Any:
    """Return FAISS's own flat index in half precision on device 0 (in float32 on a CPU)."""
    faiss = import_faiss()
    if not cuda:
        index = faiss.IndexFlatIP(vectors.shape[1])
    elif not hasattr(faiss, "StandardGpuResources"):
        raise ImportError("this FAISS was built without CUDA; pip install -e '.[gpu]'")
    else:
        config = faiss.GpuIndexFlatConfig()
        config.useFloat16 = True
        resources = faiss.StandardGpuResources()
        index = faiss.GpuIndexFlatIP(resources, vectors.shape[1], config)
    for start in range(0, len(vectors), BLOCK):
        index.add(vectors[start : start + BLOCK])
    return index


def one_process(order: list[str]) -> str:
    """Return "yes", or the last line that a process with both on the GPU ended with."""
    done = subprocess.run([sys.executable, "-c", BOTH, *order], capture_output=True, text=True)
    if done.returncode == 0:
        return "yes"
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return f"no (exit {done.returncode}): {last}"


def versions(device: torch.device) -> dict[str, Any]:
    """Return what was measured with."""
    found = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "cores": os.cpu_count()}
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    try:
        found["faiss"] = import_faiss().__version__
    except ImportError as error:
        found["faiss"] = f"missing: {error}"
    return found


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the figures of both ways."""
    count = how_many(args.passages, args.dim, device)
    report: dict[str, Any] = {"passages": count, "dim": args.dim, **versions(device), "rows": []}
    vectors = make_vectors(count, args.dim, device)
    queries = make_vectors(max(args.batches), args.dim, device)[::-1]
    queries = np.ascontiguousarray(queries + 0.5 * vectors[: len(queries)])
    found = {}
    for way in ("torch", "faiss"):
        started = time.perf_counter()
        try:
            index: Any = (
                TorchFlatIndex(vectors, "ip", str(device), args.dtype)
                if way == "torch"
                else faiss_on_device(vectors, device.type == "cuda")
            )
        except (ImportError, RuntimeError, AttributeError) as error:
            report[f"{way}_error"] = str(error)
            continue
        report[f"{way}_load_s"] = time.perf_counter() - started
        found[way] = index.search(queries, K)[1]
        for batch in args.batches:
            row = {"way": way, "batch": batch}
            row |= latency(partial(index.search, k=K), queries[:batch], args.rounds)
            report["rows"].append(row)
        if way == "torch":  # the rest of a search scores candidates again on the host
            report["scan_ms"] = {
                batch: latency(partial(index._scan, width=4 * K), queries[:batch], 10)
                for batch in args.batches
            }
    if len(found) == 2:
        report["same_ids"] = float((found["torch"] == found["faiss"]).mean())
    if device.type == "cuda":
        report["one_process"] = {
            " then ".join(order): one_process(order)
            for order in (["torch", "faiss"], ["faiss", "torch"])
        }
    return report


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--passages", type=int, default=WIKIPEDIA, help="as many as fit, at most")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 320])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="float16", help="of torch's scan")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("a CUDA device must be there, torch sees none; try the script with --device cpu")
    report = measure(args, device)
    rows = report.pop("rows")
    for name, value in report.items():
        print(f"{name}: {value}")
    print("| way | batch | p50 ms | p99 ms | queries/s |\n|---|---|---|---|---|")
    for row in rows:
        rate = 1000 * row["batch"] / row["p50_ms"]
        cells = f"{row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {rate:.0f}"
        print(f"| {row['way']} | {row['batch']} | {cells} |")
    if args.json:
        args.json.write_text(json.dumps({**report, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
