"""What counting words for BM25 will take, said before it starts: time, disk and memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from research_rl.envs.retrieval.bm25 import fit_bm25
from research_rl.envs.retrieval.encoders import words
from research_rl.envs.retrieval.estimate import duration, held_now, size
from research_rl.envs.types import Passage

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
