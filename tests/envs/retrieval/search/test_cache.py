"""Results that are kept: what is asked again comes back the same, and is searched once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research_rl.envs.retrieval.search import CachedRetriever
from research_rl.envs.types import Passage, Results


class Counting(CachedRetriever):
    """Finds the query itself, ``k`` times, and notes what it was asked."""

    def __init__(self, cache_size: int) -> None:
        super().__init__(cache_size)
        self.asked: list[tuple[str, int]] = []

    def _find(self, queries: Sequence[str], k: int) -> Results:
        self.asked += [(query, k) for query in queries]
        return [[Passage(str(i), query) for i in range(k)] for query in queries]


CALLS = st.lists(st.tuples(st.lists(st.sampled_from("abcd")), st.integers(1, 3)), max_size=8)


@given(CALLS, st.integers(0, 5))
def test_results_do_not_depend_on_what_is_kept(
    calls: list[tuple[list[str], int]], size: int
) -> None:
    retriever = Counting(size)
    for queries, k in calls:
        before = len(retriever.asked)
        found = retriever.search(queries, k)
        assert found == [[Passage(str(i), query) for i in range(k)] for query in queries]
        new = retriever.asked[before:]
        assert len(new) == len(set(new)), "equal queries of a call are searched once"
        for row in found:
            row.clear()  # what a caller does to its results changes no other's
        assert len(retriever._cache) <= size


def test_the_least_recently_used_are_forgotten_first() -> None:
    retriever = Counting(2)
    for query in ("a", "b", "a", "c", "a", "b"):
        retriever.search([query], 1)
    assert [query for query, _ in retriever.asked] == ["a", "b", "c", "b"]


def test_a_copy_is_the_retriever_itself_and_k_is_checked() -> None:
    retriever = Counting(1)
    assert copy.deepcopy(retriever) is retriever
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        retriever.search(["a"], 0)
    with pytest.raises(ValueError, match="cache_size must not be negative, got -1"):
        Counting(-1)
