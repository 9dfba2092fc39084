"""Core types of the environments: questions, passages, rewards and the retriever.

All of them hold text, such as ``Passage("7", "Bakset\\nthe boss of Bakset is Domlor .")``; token
ids begin in ``research_rl.agents``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Question:
    """One question with every answer that counts as right.

    Args:
        id: unique within its data set.
        text: the question as the policy reads it.
        answers: gold answers, at least one.
        metadata: what the data set knows besides: ``hops`` (int), ``gold_ids`` (passage ids of
            the supporting paragraphs), ``chain`` (gold queries in order), ``type``, ``split``.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Passage:
    """One retrieved document; ``contents`` is its title, a newline and its body."""

    id: str
    contents: str
    score: float = 0.0


@dataclass(frozen=True)
class Reward:
    """The verdict on a finished episode.

    Args:
        value: what the policy is paid.
        f1: token F1 of the prediction against the best gold answer, 0 to 1.
        em: 1.0 if the normalised prediction equals a gold answer, else 0.0.
        format_error: what is wrong with the policy's own text; None if nothing is.
        prediction: what the last ``\\boxed{}`` of the answer holds, "" without one.
    """

    value: float
    f1: float = 0.0
    em: float = 0.0
    format_error: str | None = None
    prediction: str = ""


Results: TypeAlias = list[list[Passage]]
"""The passages of each query, best first."""


# An ABC and no Protocol, whose exact annotations jsonargparse would demand of a class in a YAML.
class Retriever(ABC):
    """Text search: all queries of a step in one call."""

    @abstractmethod
    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return the ``k`` best passages of each query, best first.

        Raises:
            RetrieverUnavailable: the index or server does not answer. An error is never an
                empty list.
        """


class RetrieverUnavailable(RuntimeError):
    """A retriever does not answer, even after retries; says where and how often it was asked."""
