"""``autorefine``: the tags of AutoRefine (arXiv 2505.11277): the policy refines what it has read.

::

    <search> boss of Bakset </search>

    <documents>
    ...
    </documents>

    <refine> The boss is Domlor. </refine> <answer> Domlor </answer>

Repository syr-cn/AutoRefine.
"""

from __future__ import annotations

from typing import ClassVar

from research_rl.envs.protocols.dialects.search_r1 import SearchR1
from research_rl.envs.protocols.tags import TagProtocol, Tags


class AutoRefine(SearchR1):
    """``<documents>``, and ``<refine>`` blocks of the policy between a result and what follows."""

    name = "autorefine"
    tags: ClassVar[Tags] = {
        **TagProtocol.tags,
        "result": ("<documents>", "</documents>"),
        "refine": ("<refine>", "</refine>"),
    }
    blocks = ("think", "search", "refine", "answer")

    def rules(self, about: str) -> str:
        """See TagProtocol."""
        refine = " ".join(self.tags["refine"])
        return (
            f"{super().rules(about)} After each result, write what matters of it inside {refine} "
            "before you go on."
        )
