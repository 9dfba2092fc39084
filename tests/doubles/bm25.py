"""BM25 straight from its formula, and four passages, three of them with a title."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from research_rl.envs.retrieval.encoders.terms import words

DOCS = [
    '"Oslo"\nOslo is the capital of Norway; cities of the north.',
    '"Paris"\nParis is the capital of France, a city on the Seine.',
    '"Emma"\nEmma is a novel by Jane Austen about love, love and marriage.',
    "A passage without a title says that Jane Austen never lived in Oslo.",
]


def bm25(
    query: str, docs: Sequence[str], k1: float, b: float, title_weight: int, power: float = 1.0
) -> list[float]:
    """The score of each passage, without the constant factor k1 + 1.

    Args:
        query: of any words.
        docs: the passages, each a title, a newline and a text, or a text alone.
        k1: saturation of the counts.
        b: weight of the length.
        title_weight: how often a title counts.
        power: of Lucene's idf.
    """
    split = []
    for doc in docs:
        title, newline, _ = doc.partition("\n")
        split.append(Counter(words(doc) + (words(title) * (title_weight - 1) if newline else [])))
    mean = sum(sum(doc.values()) for doc in split) / len(split)
    scores = []
    for doc in split:
        score = 0.0
        for term in words(query):
            df = sum(term in other for other in split)
            if tf := doc[term]:
                idf = math.log(1 + (len(docs) - df + 0.5) / (df + 0.5))
                norm = k1 * (1 - b + b * sum(doc.values()) / mean)
                score += idf**power * tf / (tf + norm)
        scores.append(score)
    return scores
