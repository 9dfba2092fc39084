"""The small pieces of a step, each beside what it replaced, in a loop on a CPU.

Norms of a decode step and of a prompt, with and without gradient, beside the modules'; decode
attention by folded products beside the fused kernel, by how many query heads share a key head.
In a loop everything is in the cache; inside a model each takes several times as long.

    python benchmarks/pieces.py [--repeats 200]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from research_rl.agents.kernels import slot_attention as attention
from research_rl.agents.kernels.fused_ops import Stream, rms_norm
from research_rl.agents.kernels.kv_cache import SlotCache
from research_rl.agents.kernels.slot_attention import attend_slots, flat_batch


def micros(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median microseconds of each way, called in turn."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            found[way].append(1e6 * (time.perf_counter() - start))
    return {way: statistics.median(times) for way, times in found.items()}


def norms(rows: int, dtype: torch.dtype, learned: bool, repeats: int) -> dict[str, float]:
    """A norm of width 256; without gradient it is that of a stream, as the decoder's are."""
    module = Qwen2RMSNorm(256).to(dtype)
    weight, eps = module.weight, module.variance_epsilon
    x = torch.randn(rows, 256).to(dtype).requires_grad_(learned)
    if learned:
        change = torch.randn(rows, 256).to(dtype)
        ways: dict[str, Callable[[], Any]] = {
            "modules": lambda: module(x).backward(change),
            "ours": lambda: rms_norm(x, weight, eps).backward(change),
        }
        return micros(ways, repeats)
    with torch.no_grad():
        stream = Stream(x, eps)
        return micros(
            {"modules": lambda: module(x), "ours": lambda: stream.normed(weight)}, repeats
        )


@torch.no_grad()
def decoding(shared: int, keys: int, dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Attention of 20 rows over 2 key heads of width 64, each with so many query heads."""
    cache = SlotCache(21, keys)
    cache.reserve(keys)
    last, lengths = torch.zeros(20, dtype=torch.long), torch.full((20,), keys - 1)
    batch = flat_batch(cache, last, lengths, keys, [])
    q = torch.randn(20, 2 * shared, 64).to(dtype)
    k, v = (torch.randn(20, 2, 64).to(dtype) for _ in range(2))

    def run(few: int) -> None:
        attention._FEW = few
        attend_slots(batch, 0, q, k, v, 0.125)

    before = attention._FEW
    try:
        return micros({"products": lambda: run(0), "fused": lambda: run(99)}, repeats)
    finally:
        attention._FEW = before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("| norm of width 256 | modules, us | ours, us |\n|---|---|---|")
    for rows, learned in ((20, False), (2580, False), (2580, True)):
        for dtype in (torch.bfloat16, torch.float32):
            found = norms(rows, dtype, learned, repeats)
            name = f"{rows} rows, {dtype}".replace("torch.", "") + ", with gradient" * learned
            print(f"| {name} | {found['modules']:.0f} | {found['ours']:.0f} |")
    print("\n| decode attention, bfloat16 | products, us | fused, us |\n|---|---|---|")
    for shared in (1, 2, 3, 7):
        for keys in (192, 576):
            found = decoding(shared, keys, torch.bfloat16, repeats)
            name = f"{shared} query heads a key head, {keys} keys"
            print(f"| {name} | {found['products']:.0f} | {found['fused']:.0f} |")


if __name__ == "__main__":
    main()
