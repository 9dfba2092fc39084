"""Estimates of a build, before it starts: time, disk and memory."""

from __future__ import annotations

import copy
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.retrieval.encoders import Encoder, words
from research_rl.envs.retrieval.search import fit_bm25
from research_rl.envs.retrieval.vectors import (
    BLOCK,
    Metric,
    bytes_per_vector,
    import_faiss,
    least_rows,
    new_index,
    product_quantizer,
    sample_rows,
    search_width_of,
    streamed_header,
    training_rows,
)
from research_rl.envs.types import Passage

SAMPLED, K = 256, 5
"""Queries on which the recall of a compressed index is measured, and how many results of each."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_PROBE_S, _PROBE_ROWS = 2.0, 512
_KMEANS_ROUNDS, _PQ_ROUNDS = 10, 25
_GRAPH, _PQ = 220_000, 31
"""Measured cost of adding to an HNSW graph of a million, and of one PQ code, in BLAS products."""


@dataclass(frozen=True)
class Estimate:
    """What a dense build takes, in bytes and seconds.

    Args:
        count: passages.
        dim: numbers a vector.
        factory: how FAISS keeps them.
        memory: main memory at the peak, with what the process holds already.
        disk: the finished folder, without the corpus.
        scratch: disk needed besides while it is made.
        seconds: how long it takes; None if that was not measured.
        sample: vectors that the type learns from.
        least: vectors that it cannot be trained without.
    """

    count: int
    dim: int
    factory: str
    memory: int
    disk: int
    scratch: int
    seconds: float | None = None
    sample: int = 0
    least: int = 0

    @property
    def trainable(self) -> bool:
        """Whether there are enough vectors to learn from."""
        return self.sample >= self.least

    def __str__(self) -> str:
        took = "" if self.seconds is None else f", about {duration(self.seconds)}"
        return (
            f"{self.count} passages x {self.dim} as {self.factory}{took}, "
            f"{size(self.disk)} on disk (and {size(self.scratch)} until it is done), "
            f"{size(self.memory)} of memory"
        )


def parse_size(text: str | int) -> int:
    """Return a number of bytes written like "2GB", "512MiB" or 1000000.

    Raises:
        ValueError: it is written otherwise.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(text), re.IGNORECASE)
    if not match:
        raise ValueError(f"memory must be a size such as 2GB or 512MB, got {text!r}")
    number, unit, binary = match.groups()
    power = _UNITS[unit.upper()]
    if binary:
        power = 1024 ** list(_UNITS).index(unit.upper())
    return int(float(number) * power)


def size(number: int) -> str:
    """Return a number of bytes as people write it: ``1.5 GB``."""
    for power, unit in ((10**9, "GB"), (10**6, "MB")):
        if number >= power:
            return f"{number / power:.1f} {unit}"
    return f"{number / 1000:.1f} kB"


def duration(seconds: float) -> str:
    """Return seconds as people write them: ``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def estimate(
    count: int,
    dim: int,
    factory: str,
    metric: Metric,
    memory: int,
    scratch: int,
    seconds: float | None = None,
) -> Estimate:
    """Return what storing ``count`` vectors takes, with so much scratch space and time."""
    index = new_index(dim, metric, factory)
    sample = sample_rows(index, count, memory)
    kept = count * bytes_per_vector(index)
    block = 8 * BLOCK * dim * 4
    held = 0 if _is_streamed(index) else kept
    total = held_now() + 40 * count + max(block + held, sample * 8 * dim + block)
    judged = 0 if factory == "Flat" else SAMPLED * (4 * dim + 8 * K)
    disk = kept + 16 * count + judged
    learns = (sample, least_rows(index))
    return Estimate(count, dim, factory, int(total), disk, scratch, seconds, *learns)


def check_plan(plan: Estimate, memory: int, fitting: Sequence[str] = ()) -> None:
    """Refuse a build that needs more memory than it may take, or more passages than there are.

    Args:
        plan: what it takes.
        memory: what it may take, in bytes.
        fitting: types that would do with that.

    Raises:
        ValueError: says how much it takes and what takes less.
    """
    other = f", or take a type that fits: {', '.join(fitting)}" if fitting else ""
    if not plan.trainable:
        more = "more memory (--memory)" if plan.count >= plan.least else "more passages"
        raise ValueError(
            f"{plan.factory} must learn from at least {plan.least} vectors, got {plan.sample} of "
            f"{plan.count} passages; give it {more}{other}"
        )
    if plan.memory > memory:
        raise ValueError(
            f"memory must be at least {size(plan.memory)} for {plan.count} x {plan.dim} as "
            f"{plan.factory}, got {size(memory)}; give it more (--memory){other}"
        )


def encoding_seconds(encoder: Encoder, passages: Sequence[Passage], rows: int) -> float:
    """Return about how long encoding takes, from a few hundred passages spread over the corpus."""
    places = np.linspace(0, len(passages) - 1, min(len(passages), _PROBE_ROWS)).astype(int)
    texts = [passages[place].contents for place in places.tolist()]
    if type(encoder).fit is not Encoder.fit:
        encoder = copy.deepcopy(encoder)
        encoder.fit(texts)
    encoder.encode_passages(texts[:1])
    start, done = time.perf_counter(), 0
    while done < len(texts) and time.perf_counter() - start < _PROBE_S:
        encoder.encode_passages(texts[done : done + 32])
        done = min(done + 32, len(texts))
    return (time.perf_counter() - start) / done * rows


def seconds_to_index(factory: str, metric: Metric, count: int, dim: int) -> float:
    """Return about how long training and adding take: k-means, codes and graphs."""
    index = new_index(dim, metric, factory)
    ivf = import_faiss().try_extract_index_ivf(index)
    left, right = np.ones((512, dim), np.float32), np.ones((dim, 1024), np.float32)
    start = time.perf_counter()
    left @ right
    per_product = (time.perf_counter() - start) / (512 * 1024)
    products = 0.0
    if ivf:
        products += ivf.nlist * (_KMEANS_ROUNDS * training_rows(index, count) + count)
    if pq := product_quantizer(index):
        products += _PQ * pq.ksub * (_PQ_ROUNDS * min(count, 256 * pq.ksub) + count)
    if search_width_of(index) == "efSearch":
        products += _GRAPH * count * math.log(count) / math.log(1e6)
    return float(per_product * products)


def held_now() -> int:
    """Return the most memory this process has held so far, in bytes (0 where it cannot be told)."""
    if sys.platform == "win32":
        return 0
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"VmRSS:\s*(\d+) kB", status.read_text())
        return 1024 * int(found[1]) if found else 0
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _is_streamed(index: object) -> bool:
    """Return whether an index is written block by block; untrained, by the look of its type."""
    if getattr(index, "is_trained", False):
        return streamed_header(index, 1) is not None
    return type(index).__name__ == "IndexScalarQuantizer"


_PROBED = 512
_MEMORY = 48  # bytes a word: 41 at the peak over 20,000 paragraphs of Wikipedia, and some room
_DISK = 11  # bytes a different word of a passage: score and number of the passage, and vocabulary
_OFFSETS = 40  # bytes a passage while the corpus is read


@dataclass(frozen=True)
class WordsEstimate:
    """What BM25 takes, in bytes and seconds.

    Args:
        count: passages.
        words: words of all of them, titles as often as they count.
        memory: main memory at the peak, with what the process holds already.
        disk: the finished folder, without the corpus.
        seconds: how long it takes.
    """

    count: int
    words: int
    memory: int
    disk: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.count} passages of about {self.words / self.count:.0f} words for BM25, about "
            f"{duration(self.seconds)}, {size(self.disk)} on disk, {size(self.memory)} of memory"
        )


def estimate_words(passages: Sequence[Passage], settings: dict[str, Any]) -> WordsEstimate:
    """Return what BM25 takes, from counting a few hundred passages spread over the corpus.

    Args:
        passages: the corpus.
        settings: arguments of ``fit_bm25``.
    """
    count = len(passages)
    places = np.linspace(0, count - 1, min(count, _PROBED)).astype(int)
    texts = [passages[place].contents for place in places.tolist()]
    titles = [title for title, newline, _ in (t.partition("\n") for t in texts) if newline]
    weight = settings.get("title_weight", 1) - 1
    total = sum(len(words(t)) for t in texts) + weight * sum(len(words(t)) for t in titles)
    different = sum(len(set(words(t))) for t in texts)
    start = time.perf_counter()
    if total:
        fit_bm25(texts, **settings)
    seconds = time.perf_counter() - start
    more = count / len(texts)
    memory = held_now() + _OFFSETS * count + int(_MEMORY * total * more)
    disk = 16 * count + int(_DISK * different * more)
    return WordsEstimate(count, int(total * more), memory, disk, seconds * more)


def check_words(plan: WordsEstimate, memory: int) -> None:
    """Refuse to count words in less memory than that takes.

    Raises:
        ValueError: says how much it takes.
    """
    if plan.memory > memory:
        raise ValueError(
            f"memory must be at least {size(plan.memory)} for the words of {plan.count} passages, "
            f"got {size(memory)}; give it more (--memory), or take --kind dense"
        )
