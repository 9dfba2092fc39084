"""Texts that share nearly all of their words: which of many, without comparing all pairs.

Two texts are near where the shares of their sets of words in common (Jaccard) reach a limit. Sets
that are so alike share at least one of their rarest words, so only those that do are compared.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from research_rl.envs.retrieval.encoders import words

NEAR = 0.8
"""Share of words in common from which texts are near."""


class NearTexts:
    """Texts to which others are compared.

    Args:
        texts: all that will be added or looked for; their words are counted, rare ones are told so.
        near: least share of words in common, above 0 and at most 1.
    """

    def __init__(self, texts: Iterable[str], near: float = NEAR) -> None:
        self.near = near
        self._counts = Counter(word for text in texts for word in set(words(text)))
        self._sets: list[list[str]] = []
        self._by_word: dict[str, list[int]] = defaultdict(list)

    @staticmethod
    def distinct(text: str) -> int:
        """Return how many different words a text has."""
        return len(set(words(text)))

    def add(self, text: str) -> int:
        """Add a text and return its number, from 0."""
        one, row = self._rarest_first(text), len(self._sets)
        self._sets.append(one)
        for word in one[: self._prefix(len(one))]:
            self._by_word[word].append(row)
        return row

    def nearest(self, text: str) -> tuple[int | None, float]:
        """Return the number of the added text with most words in common, and their share.

        None and 0 where no added text is near; of equally near ones the first.
        """
        one = self._rarest_first(text)
        own, best, place = set(one), 0.0, None
        rare: Sequence[str] = one[: self._prefix(len(one))]
        for row in sorted({row for word in rare for row in self._by_word.get(word, ())}):
            other = self._sets[row]
            if self.near * len(own) <= len(other) <= len(own) / self.near:
                common = len(own.intersection(other))
                likeness = common / (len(own) + len(other) - common)
                if likeness >= self.near and likeness > best:
                    best, place = likeness, row
        return place, best

    def _rarest_first(self, text: str) -> list[str]:
        return sorted(set(words(text)), key=lambda word: (self._counts[word], word))

    def _prefix(self, size: int) -> int:
        """Words of which two sets that are near share at least one, each sorted alike."""
        return size - math.ceil(self.near * size) + 1
