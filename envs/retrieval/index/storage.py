"""Storage of the vectors of an index: FAISS type, metric, search width and memory."""

from __future__ import annotations

import os
from dataclasses import dataclass

from research_rl.envs.retrieval.index.estimate import Estimate, estimate, parse_size
from research_rl.envs.retrieval.index.recall import TARGET
from research_rl.envs.retrieval.vectors import (
    TYPES,
    Metric,
    factory_string,
    new_index,
    search_width_of,
)


@dataclass(frozen=True)
class Storage:
    """How vectors are kept and found.

    Args:
        index_type: "flat" (exact), "sq8", "ivf", "ivf-sq8", "ivf-pq", "rabitq", "hnsw", or a FAISS
            factory string.
        metric: "ip" (inner product) or "l2".
        fp16: 16 bits a number, for flat, ivf and hnsw.
        nprobe: lists an IVF index looks into; None finds the fewest that reach ``recall``.
        ef_search: passages an HNSW index walks over; None likewise.
        recall: share of the exact first 5 to find, on sampled queries.
        memory: bytes the process may take, or text such as "2GB"; None takes four fifths of the
            machine's.
    """

    index_type: str = "flat"
    metric: Metric = "ip"
    fp16: bool = False
    nprobe: int | None = None
    ef_search: int | None = None
    recall: float = TARGET
    memory: int | str | None = None

    @property
    def limit(self) -> int:
        """Bytes the process may take."""
        if self.memory is not None:
            return parse_size(self.memory)
        if not hasattr(os, "sysconf"):
            return 2**62
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 4 // 5

    @property
    def width(self) -> int | None:
        """The given nprobe or efSearch."""
        return self.ef_search if self.nprobe is None else self.nprobe

    def factory(self, count: int, dim: int) -> str:
        """Return the FAISS factory string for that many vectors of that length."""
        return factory_string(self.index_type, count, dim, self.fp16)

    def estimate(self, rows: int, count: int, dim: int, seconds: float | None = None) -> Estimate:
        """Return what storing ``count`` vectors takes, of which ``rows`` are encoded now."""
        factory = self.factory(count, dim)
        raw = 0 if factory == "Flat" else rows * dim * (2 if self.fp16 else 4)
        return estimate(count, dim, factory, self.metric, self.limit, raw, seconds)

    def fitting(self, rows: int, count: int, dim: int) -> list[str]:
        """Return the types that such a build has memory for."""
        others = (Storage(name, self.metric, memory=self.memory) for name in TYPES)
        plans = ((s.index_type, s.estimate(rows, count, dim)) for s in others)
        return [name for name, p in plans if p.trainable and p.memory <= self.limit]

    def check(self, dim: int) -> None:
        """Refuse settings that do not fit vectors of ``dim`` numbers, before any work.

        Raises:
            ValueError: says which.
        """
        _ = self.limit
        search_width = search_width_of(new_index(dim, self.metric, self.factory(10_000, dim)))
        for name, given, type_ in (
            ("nprobe", self.nprobe, "ivf"),
            ("efSearch", self.ef_search, "hnsw"),
        ):
            if given is not None and (given < 1 or search_width != name):
                raise ValueError(
                    f"{name} must be at least 1 and go with an {type_} type, "
                    f"got {given} for {self.index_type!r}; leave it out"
                )
        if not 0 < self.recall <= 1:
            raise ValueError(f"recall must be above 0 and at most 1, got {self.recall}")
