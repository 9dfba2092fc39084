"""BM25 as dense vectors: an encoder that needs no weights and no network."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research_rl.envs.retrieval.encoders.base import Encoder, Floats, Ints, Vectors
from research_rl.envs.retrieval.encoders.terms import NEWEST_RULE, WordRule, words

SKETCH = "bm25-sketch"


class BM25SketchEncoder(Encoder):
    """BM25 as an inner product of dense vectors: no weights, no network, any FAISS index.

    A passage carries for each term its saturated frequency times idf^0.25, a query its count
    times idf^1.25; their product is BM25 with idf^1.5 (rare words count a little more than in
    the textbook). Most of the idf is on the query's side, so that the other words of a passage
    add little noise. Both are projected by one signed count sketch: each term adds its weight, with
    a sign, to one cell in each of ``num_hashes`` blocks (Kane and Nelson 2014,
    https://arxiv.org/abs/1012.1577). A vocabulary that fits into ``dim`` gets a cell a term, which
    loses nothing. Words that no passage has are dropped from queries.

    Args:
        dim: length of the vectors; 2048 keeps about as much as exact BM25 finds.
        k1: how slowly repeated terms saturate (Robertson and Zaragoza 2009).
        b: how strongly long passages are held back, 0 to 1.
        title_weight: how often the words of the first of several lines count.
        num_hashes: blocks of the sketch, 1 to 16; ``dim`` must be a multiple.
    """

    name = SKETCH
    zero_finds_nothing = True

    def __init__(
        self,
        dim: int = 2048,
        k1: float = 0.9,
        b: float = 0.75,
        title_weight: int = 2,
        num_hashes: int = 8,
    ) -> None:
        if not 1 <= num_hashes <= 16:
            raise ValueError(f"num_hashes must be 1 to 16, got {num_hashes}")
        if dim < num_hashes or dim % num_hashes:
            raise ValueError(f"dim must be a multiple of num_hashes={num_hashes}, got {dim}")
        if k1 < 0 or not 0 <= b <= 1 or title_weight < 1:
            raise ValueError(
                "k1 must be >= 0, b 0 to 1 and title_weight >= 1, "
                f"got k1={k1}, b={b}, title_weight={title_weight}"
            )
        self._dim, self.k1, self.b = dim, k1, b
        self.title_weight, self.num_hashes = title_weight, num_hashes
        self.rule: WordRule = NEWEST_RULE
        """What a word is; an index that an older version built keeps its own."""
        self._terms: dict[str, int] = {}
        self._df: Ints = np.zeros(0, np.int64)
        self._count, self._mean_length = 0, 0.0

    @property
    def dim(self) -> int:
        return self._dim

    def settings(self) -> dict[str, Any]:
        return {
            "dim": self.dim,
            "k1": self.k1,
            "b": self.b,
            "title_weight": self.title_weight,
            "num_hashes": self.num_hashes,
        }

    def fit(self, passages: Iterable[str]) -> None:
        """Count how many passages have each term, and how long they are."""
        df: Counter[str] = Counter()
        total = self._count = 0
        for passage in passages:
            terms = self._passage_words(passage)
            df.update(set(terms))
            total += len(terms)
            self._count += 1
        if not df:
            raise ValueError(f"passages must hold words, got none in {self._count} passages")
        self._set_state(dict(sorted(df.items())), total / self._count)

    def save(self, folder: Path) -> None:
        terms = list(self._terms)
        state = {"terms": terms, "df": self._df.tolist(), "count": self._count}
        text = json.dumps(state | {"mean_length": self._mean_length, "words": self.rule})
        (folder / "sketch.json").write_text(text, encoding="utf-8")

    def load(self, folder: Path) -> None:
        state = json.loads((folder / "sketch.json").read_text(encoding="utf-8"))
        self._count, self.rule = state["count"], state.get("words", 1)
        words("", self.rule)  # refuses a rule of a later version
        self._set_state(dict(zip(state["terms"], state["df"], strict=True)), state["mean_length"])

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        self._need_fit()
        row, term, tf = self._counts([words(text, self.rule) for text in texts])
        return self._project(len(texts), row, term, tf * self._query_weight[term])

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        self._need_fit()
        split = [self._passage_words(text) for text in texts]
        row, term, tf = self._counts(split)
        length = np.array([len(terms) for terms in split], np.float64)
        norm = self.k1 * (1 - self.b + self.b * length / self._mean_length)
        weight = tf * (self.k1 + 1) / (tf + norm[row]) * self._passage_weight[term]
        return self._project(len(texts), row, term, weight)

    def _passage_words(self, text: str) -> list[str]:
        title, newline, _ = text.partition("\n")
        extra = words(title, self.rule) * (self.title_weight - 1) if newline else []
        return words(text, self.rule) + extra

    def _set_state(self, df: Mapping[str, int], mean_length: float) -> None:
        """Keep the statistics and lay out the sketch: cells and signs, (V, hashes)."""
        self._terms = {term: i for i, term in enumerate(df)}
        self._df = np.fromiter(df.values(), np.int64, len(df))
        self._mean_length = mean_length
        idf = np.log1p((self._count - self._df + 0.5) / (self._df + 0.5))
        self._passage_weight, self._query_weight = idf**0.25, idf**1.25
        if len(df) <= self.dim:
            self._cells = np.arange(len(df), dtype=np.int64)[:, None]
            self._signs = np.ones((len(df), 1))
            return
        digests = b"".join(
            hashlib.blake2b(
                term.encode("utf-8", "surrogatepass"), digest_size=4 * self.num_hashes
            ).digest()
            for term in df
        )
        hashes = np.frombuffer(digests, "<u4").reshape(len(df), self.num_hashes).astype(np.int64)
        block = self.dim // self.num_hashes
        self._cells = (hashes >> 1) % block + block * np.arange(self.num_hashes)
        self._signs = np.where(hashes & 1, 1.0, -1.0) / np.sqrt(self.num_hashes)

    def _counts(self, texts: Sequence[Sequence[str]]) -> tuple[Ints, Ints, Floats]:
        """Return text number, term and count of each distinct known term of each text."""
        known = self._terms
        ids = [[known[word] for word in text if word in known] for text in texts]
        lengths = np.array([len(row) for row in ids], np.int64)
        flat = np.fromiter((i for row in ids for i in row), np.int64, int(lengths.sum()))
        row = np.repeat(np.arange(len(ids)), lengths)
        key, count = np.unique(row * len(known) + flat, return_counts=True)
        return key // len(known), key % len(known), count.astype(np.float64)

    def _project(self, size: int, row: Ints, term: Ints, weight: Floats) -> Vectors:
        """Sketch weighted terms into float32 (size, dim)."""
        out = np.empty((size, self.dim), np.float32)
        for start, stop, part in _chunks(row, size):
            cells = (row[part, None] - start) * self.dim + self._cells[term[part]]
            values = weight[part, None] * self._signs[term[part]]
            space = (stop - start) * self.dim
            flat = np.bincount(cells.ravel(), values.ravel(), minlength=space)
            out[start:stop] = flat.reshape(-1, self.dim)
        return out

    def _need_fit(self) -> None:
        if not self._terms:
            raise RuntimeError("BM25SketchEncoder must be fitted on the passages first; call fit")


def _chunks(row: Ints, size: int, step: int = 256) -> Iterator[tuple[int, int, slice]]:
    """Yield (first text, end, slice of their entries); ``row`` is sorted."""
    for start in range(0, size, step):
        stop = min(start + step, size)
        first, last = np.searchsorted(row, [start, stop])
        yield start, stop, slice(int(first), int(last))
