"""BM25 over words, through bm25s: a sparse matrix of scores, memory-mapped when it is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from research_rl.envs.retrieval.encoders import NEWEST_RULE, WordRule, words
from research_rl.envs.retrieval.search.cache import CachedRetriever, Ranking, read_best
from research_rl.envs.types import Passage, Retriever

DEFAULTS: dict[str, Any] = {"k1": 0.9, "b": 0.75, "title_weight": 2}


def import_bm25s() -> Any:
    """Return the module ``bm25s``.

    Raises:
        ImportError: it is not installed; the message is the line that installs it.
    """
    try:
        import bm25s
    except ImportError as error:
        raise ImportError(
            "bm25s must be installed for BM25; do pip install -e '.[bm25]'"
        ) from error
    return bm25s


def fit_bm25(
    contents: Iterable[str],
    k1: float = 0.9,
    b: float = 0.75,
    title_weight: int = 2,
    rule: WordRule = NEWEST_RULE,
) -> Any:
    """Return a ``bm25s.BM25`` that has counted the words of all passages.

    Words are those of ``encoders.terms``. All word numbers are in
    memory meanwhile, about 8 bytes for each word of the corpus and as much again for the scores.

    Args:
        contents: the passages.
        k1: how slowly repeated words saturate.
        b: how strongly long passages are held back, 0 to 1.
        title_weight: how often the words of the first of several lines count.
        rule: what a word is; a retriever over the model must have the same.
    """
    if k1 < 0 or not 0 <= b <= 1 or title_weight < 1:
        raise ValueError(
            "k1 must be >= 0, b 0 to 1 and title_weight >= 1, "
            f"got k1={k1}, b={b}, title_weight={title_weight}"
        )
    model = import_bm25s().BM25(k1=k1, b=b, method="lucene")
    numbers: dict[str, int] = {}
    passages = []
    for text in contents:
        title, newline, _ = text.partition("\n")
        extra = words(title, rule) * (title_weight - 1) if newline else []
        terms = words(text, rule) + extra
        passages.append([numbers.setdefault(term, len(numbers)) for term in terms])
    if not numbers:
        raise ValueError(f"passages must hold words, got none in {len(passages)} passages")
    model.index((passages, numbers), create_empty_token=False, show_progress=False)
    return model


def save_bm25(model: Any, folder: Path) -> None:
    """Write a model into a folder, which is made."""
    model.save(str(folder), show_progress=False)


def load_bm25(folder: Path) -> Any:
    """Open what ``save_bm25`` wrote, memory-mapped."""
    return import_bm25s().BM25.load(str(folder), mmap=True)


class BM25Retriever(CachedRetriever):
    """The passages that share the most telling words with the query.

    Only passages that share a word are found; equal scores keep the order of the corpus.

    Args:
        model: a ``bm25s.BM25``, as ``fit_bm25`` returns it.
        passages: the corpus, in the order the model has seen it.
        source: a function and its arguments that open the same retriever again, for pickles.
        cache_size: results that are kept for queries that come again; 0 keeps none.
        rule: what a word is, the one that the model has counted by.
    """

    def __init__(
        self,
        model: Any,
        passages: Sequence[Passage],
        source: tuple[Callable[..., Retriever], tuple[Any, ...]] | None = None,
        cache_size: int = 0,
        rule: WordRule = NEWEST_RULE,
    ) -> None:
        words("", rule)  # refuses a rule of a later version
        if model.scores["num_docs"] != len(passages):
            raise ValueError(
                f"model must know each passage, got {model.scores['num_docs']} known and "
                f"{len(passages)} passages; build the index again"
            )
        self.model, self.passages, self._source, self.rule = model, passages, source, rule
        super().__init__(cache_size)

    @classmethod
    def from_passages(cls, passages: Sequence[Passage], **settings: Any) -> BM25Retriever:
        """Index passages in memory; ``settings`` are those of ``fit_bm25``."""
        return cls(fit_bm25((p.contents for p in passages), **settings), passages)

    def __len__(self) -> int:
        return len(self.passages)

    def __reduce__(self) -> tuple[Callable[..., Retriever], tuple[Any, ...]]:
        own = (self.model, self.passages, None, self._cache.size, self.rule)
        return self._source or (type(self), own)

    def _find(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        return read_best(lambda width: self.places(queries, width), self.passages, k)

    def places(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """Return where in the corpus what would be found stands, without reading it."""
        return [self._best(query, min(k, len(self))) for query in queries]

    def _best(self, query: str, k: int) -> Ranking:
        known = self.model.vocab_dict
        terms = [known[word] for word in words(query, self.rule) if word in known]
        if not terms:
            return [], []
        scores = self.model.get_scores_from_ids(terms)
        places = largest(scores, k)
        places = places[scores[places] > 0]
        return places.tolist(), scores[places].tolist()


def largest(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Return the positions of the ``k`` largest scores, best first, ties by position."""
    border = np.partition(scores, -k)[-k]
    above = np.flatnonzero(scores > border)
    level = np.flatnonzero(scores == border)[: k - len(above)]
    return np.concatenate([above[np.argsort(-scores[above], kind="stable")], level])
