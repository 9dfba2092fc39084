"""Reranking: a cross-encoder reads query and passage together and sorts the candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from research_rl.envs.retrieval.index import open_retriever
from research_rl.envs.retrieval.search import CACHED_RESULTS, CachedRetriever
from research_rl.envs.system import LOADING, code_of
from research_rl.envs.types import Passage, Retriever, search_checked


class RerankRetriever(CachedRetriever):
    """The candidates of another retriever, sorted anew by a Hugging Face cross-encoder.

    A passage's score is the cross-encoder's; candidates of equal score keep the order they had. A
    search raises RetrieverUnavailable where the other retriever does not answer, and ValueError
    where the model is no cross-encoder or scores NaN or infinity.

    Args:
        retriever: who finds the candidates, or an index folder to open, of which no results are
            kept but those that are sorted anew.
        model: sequence classification model that scores (query, passage), by name or folder, such
            as ``BAAI/bge-reranker-base``; with several labels the last one counts as relevant.
        candidates: passages sorted for each query, at least as many as are wanted.
        max_length: tokens of query and passage together; passages are cut.
        batch_size: pairs in one forward pass.
        dtype: "float32", "bfloat16" or "float16".
        device: "cpu", "cuda", ...; "auto" takes the GPU if there is one.
        revision: branch, tag or commit on the Hub.
        cache_size: results that are kept for queries that come again; 0 keeps none.
    """

    def __init__(
        self,
        retriever: Retriever | str,
        model: str,
        candidates: int = 50,
        max_length: int = 512,
        batch_size: int = 32,
        dtype: str = "float32",
        device: str = "auto",
        revision: str | None = None,
        cache_size: int = CACHED_RESULTS,
    ) -> None:
        if min(candidates, max_length, batch_size) < 1:
            raise ValueError(
                "candidates, max_length and batch_size must be positive, "
                f"got {candidates}, {max_length} and {batch_size}"
            )
        if dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
        self.retriever, self.model = open_retriever(retriever), model
        self.candidates, self.max_length, self.batch_size = candidates, max_length, batch_size
        self.dtype, self.device, self.revision = dtype, device, revision
        self._parts: tuple[Any, Any] | None = None
        super().__init__(cache_size)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        sizes = (self.candidates, self.max_length, self.batch_size)
        where = (self.dtype, self.device, self.revision, self._cache.size)
        return type(self), (self.retriever, self.model, *sizes, *where)

    def _find(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        found = search_checked(self.retriever, queries, max(k, self.candidates))
        pairs = [
            (query, p.contents) for query, row in zip(queries, found, strict=True) for p in row
        ]
        scores = iter(self._scores(pairs))
        results = []
        for row in found:
            scored = [replace(p, score=next(scores)) for p in row]
            results.append(sorted(scored, key=lambda p: -p.score)[:k])
        return results

    def _loaded(self) -> tuple[Any, Any]:
        """Return tokenizer and model, loading them the first time."""
        if self._parts is None:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            device = self.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            with LOADING, code_of(self.model) as code:
                tokenizer = AutoTokenizer.from_pretrained(
                    self.model, revision=self.revision, trust_remote_code=code
                )
                model, found = AutoModelForSequenceClassification.from_pretrained(
                    self.model,
                    revision=self.revision,
                    dtype=getattr(torch, self.dtype),
                    output_loading_info=True,
                    trust_remote_code=code,
                )
            if missing := sorted(found["missing_keys"]):  # would be filled with random numbers
                raise ValueError(
                    f"model must be a cross-encoder, which scores (query, passage), got "
                    f"{self.model} without weights for {', '.join(missing)}; take one such as "
                    "BAAI/bge-reranker-base"
                )
            self._parts = tokenizer, model.to(device).eval()
        return self._parts

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the relevance of each pair; pairs of like length share a forward pass."""
        import torch

        tokenizer, model = self._loaded()
        out = [0.0] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            texts = [[t.encode("utf-8", "replace").decode() for t in pairs[i]] for i in rows]
            batch = tokenizer(
                *map(list, zip(*texts, strict=True)),
                padding=True,
                truncation="longest_first",
                max_length=self.max_length,
                return_tensors="pt",
            ).to(model.device)
            with torch.inference_mode():
                logits = model(**batch).logits.float()  # (rows, labels)
            for row, score in zip(rows, logits[:, -1].tolist(), strict=True):
                out[row] = score
        if not all(map(math.isfinite, out)):
            raise ValueError(
                f"scores must be finite, got NaN or infinity from {self.model}; take dtype bfloat16"
                " or float32"
            )
        return out
