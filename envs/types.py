"""Core types of the environments: questions, passages, rewards and the retriever.

All of them hold text, such as ``Passage("7", "Bakset\\nthe boss of Bakset is Domlor .")``; token
ids begin in ``research_rl.agents``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from research_rl.envs.system import fold_title

UNANSWERABLE = ("unknown", "unanswerable")
"""Gold answers of a question that has none."""


@dataclass(frozen=True)
class Question:
    """One question with every answer that counts as right.

    Args:
        id: unique within its data set.
        text: the question as the policy reads it.
        answers: gold answers, at least one.
        metadata: what the data set knows besides: ``hops`` (int), ``gold_ids`` (passage ids of
            the supporting paragraphs), ``chain`` (gold queries in order), ``type``, ``split``,
            ``unanswerable`` (true where the answers are UNANSWERABLE).
    """

    id: str
    text: str
    answers: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Passage:
    """One retrieved document; ``contents`` is its title, a newline and its body.

    ``source`` says where it stands, for people: ``guide/install.md#char=812,1760`` (from character
    812 to 1760), ``manual.pdf#page=3``; "" where that is not known. No policy is shown it.
    """

    id: str
    contents: str
    score: float = 0.0
    source: str = ""


def passage_title(passage: Passage) -> str:
    """Return the first line of a passage's contents as ``fold_title`` has it, to be compared."""
    return fold_title(passage.contents.partition("\n")[0])


@dataclass(frozen=True)
class Reward:
    """The verdict on a finished episode.

    Args:
        value: what the policy is paid.
        f1: token F1 of the prediction against the best gold answer, 0 to 1.
        em: 1.0 if the normalised prediction equals a gold answer, else 0.0.
        format_error: what is wrong with the policy's own text; None if nothing is.
        prediction: what the last ``\\boxed{}`` of the answer holds, "" without one.
        parts: what each term of a reward that is a sum added to the value, by name.
    """

    value: float
    f1: float = 0.0
    em: float = 0.0
    format_error: str | None = None
    prediction: str = ""
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)


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


def check_search(queries: Sequence[str], k: int) -> None:
    """Refuse what cannot be searched for.

    Raises:
        TypeError: ``queries`` is one text, whose letters would be taken for queries, or holds
            something else than texts; or ``k`` is no integer.
        ValueError: ``k`` is less than 1.
    """
    if isinstance(queries, (str, bytes)) or not isinstance(queries, Sequence):
        got = f"{queries!r:.80}" if isinstance(queries, (str, bytes)) else _kind(queries)
        raise TypeError(f"queries must be a list of texts, got {got}; search([query], k) asks one")
    if wrong := [one for one in queries if not isinstance(one, str)]:
        raise TypeError(f"queries must be texts, got {_kind(wrong[0])}")
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise TypeError(f"k must be an integer, got {_kind(k)}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def search_checked(retriever: Retriever, queries: Sequence[str], k: int) -> Results:
    """Search, and return what was found if it is what a retriever must return.

    Every search of an episode, a baseline or a server goes through here, so that a retriever of
    one's own that breaks the contract is told of, and is never taken for one that found nothing.

    Raises:
        ValueError: not one list for each query, more than ``k`` passages, or something else than
            passages.
        RetrieverUnavailable: see ``Retriever.search``.
    """
    found: Any = retriever.search(queries, k)
    name = f"{type(retriever).__module__}.{type(retriever).__qualname__}.search"
    many = f"one list of passages for each of {len(queries)} queries"
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise ValueError(f"{name} must return {many}, got {_kind(found)}; [] is a query without")
    if len(found) != len(queries):
        raise ValueError(f"{name} must return {many}, got {len(found)}")
    for query, row in zip(queries, found, strict=True):
        if not isinstance(row, Sequence) or isinstance(row, str):
            got = _kind(row)
        elif len(row) > k:
            got = f"{len(row)} passages"
        elif wrong := [one for one in row if not isinstance(one, Passage)]:
            got = _kind(wrong[0])
        else:
            continue
        raise ValueError(
            f"{name} must return a list of at most {k} passages for each query, got {got} for the "
            f"query {query[:80]!r}"
        )
    return list(found)


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


class RetrieverUnavailable(RuntimeError):
    """A retriever does not answer, even after retries; says where and how often it was asked."""
