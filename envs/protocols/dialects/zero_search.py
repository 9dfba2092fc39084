"""``zero_search``: the tags of ZeroSearch (arXiv 2505.04588), which are those of Search-R1.

::

    <information>Doc 1: boss of Bakset the boss of Bakset is Domlor .</information>

Its policies were trained against a simulated search engine, whose documents have no titles of their
own; here a title stands in front of the body. Layout: repository Alibaba-NLP/ZeroSearch,
llm_agent/generation.py.
"""

from __future__ import annotations

from research_rl.envs.protocols.dialects.search_r1 import SearchR1


class ZeroSearch(SearchR1):
    """See SearchR1; documents are numbered and have no titles."""

    name = "zero_search"
    top_k = 5

    def document(self, number: int, contents: str) -> str:
        """Lay out one document as ``Doc 1: text``."""
        return f"Doc {number}: {' '.join(contents.splitlines())}"
