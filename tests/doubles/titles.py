"""A retriever over four pages that are found by the names in a query."""

from __future__ import annotations

from collections.abc import Sequence

from research_rl.envs import Passage, Retriever
from research_rl.trainers.demonstrations.gold import name_of

PAGES = {
    "Kiss and Tell (1945 film)": "Kiss and Tell is a 1945 comedy. It stars Shirley Temple.",
    "Shirley Temple": "Shirley Temple was an actress. She became Chief of Protocol in 1976.",
    "Bruges": "Bruges is a city in Belgium.",
    "Ghent": "Ghent is a city in Belgium.",
}


class Titles(Retriever):
    """Finds pages whose names the query holds, then others; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        self.calls.append(list(queries))
        pages = [Passage(t, f'"{t}"\n{text}') for t, text in PAGES.items()]
        return [sorted(pages, key=lambda p: name_of(p.id) not in query)[:k] for query in queries]
