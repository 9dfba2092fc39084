"""What the tests of the environment share: a few questions, retrievers that need no index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from research_rl.envs import Passage, Question, Retriever, RetrieverUnavailable

QUESTIONS = [Question(f"q{i}", f"Who owns house {i}?", (f"Owner {i}",)) for i in range(9)]
ROWS = [{"id": q.id, "question": q.text, "golden_answers": list(q.answers)} for q in QUESTIONS]


def search(query: str, thought: str = "t") -> str:
    """A well-formed turn that searches."""
    return f"<think> {thought} </think><search> {query} </search>"


def answer(text: str) -> str:
    """A well-formed turn that answers."""
    return f"<think> t </think><answer> It is \\boxed{{{text}}}. </answer>"


class Echo(Retriever):
    """Finds passages that repeat the query; counts its calls."""

    def __init__(self, contents: str = "house\nfound {query} ({rank})") -> None:
        self.contents = contents
        self.calls: list[list[str]] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return k passages for each query."""
        self.calls.append(list(queries))
        return [
            [
                Passage(str(i), self.contents.replace("{query}", q).replace("{rank}", str(i)))
                for i in range(k)
            ]
            for q in queries
        ]


class Flaky(Echo):
    """Fails as often as it is told to, then answers."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Fail, or return k passages for each query."""
        if self.failures:
            self.failures -= 1
            raise RetrieverUnavailable("http://nowhere did not answer 3 attempts")
        return super().search(queries, k)


def same(one: Any, two: Any) -> bool:
    """Whether two nested outputs are equal in value, type and dtype."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and bool(np.array_equal(one, two))
    if isinstance(one, tuple) and isinstance(two, tuple):
        return all(same(a, b) for a, b in zip(one, two, strict=True))
    return type(one) is type(two) and one == two
