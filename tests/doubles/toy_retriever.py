"""A retriever whose passages tell which query found them, at which rank, with falling scores."""

from __future__ import annotations

from collections.abc import Sequence

from research_rl.envs import Passage, Retriever, RetrieverUnavailable


class Ranked(Retriever):
    """Finds k passages for any query; remembers its calls.

    Args:
        dead: raise instead.
    """

    def __init__(self, dead: bool = False) -> None:
        self.dead = dead
        self.calls: list[list[str]] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """Return passages with the scores 1, 1/2, 1/3 and so on."""
        if self.dead:
            raise RetrieverUnavailable("http://nowhere did not answer 3 attempts")
        self.calls.append(list(queries))
        return [
            [
                Passage(f"{query}-{rank}", f"{query}\nrank {rank}", 1 / (rank + 1))
                for rank in range(k)
            ]
            for query in queries
        ]
