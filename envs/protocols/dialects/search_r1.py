"""``search_r1``: the tags of Search-R1 (arXiv 2503.09516) and of those who build on it.

::

    <think> I need the boss. </think> <search> boss of Bakset </search>

    <information>Doc 1(Title: "boss of Bakset") the boss of Bakset is Domlor .</information>

    <think> So it is Domlor. </think> <answer> Domlor </answer>

DGPO, StepSearch, Tree-GRPO and the pantomiman checkpoints speak it too. Layout: repository
PeterGriffinJin/Search-R1, search_r1/llm_agent/generation.py, which trained the policies; its
infer.py sets a newline behind the last document and other space around the block.
"""

from __future__ import annotations

from typing import ClassVar

from research_rl.envs.protocols.tags import TagProtocol, Tags


class SearchR1(TagProtocol):
    """``<information>`` with numbered documents; the answer stands in its tags without a box."""

    name = "search_r1"
    tags: ClassVar[Tags] = {**TagProtocol.tags, "result": ("<information>", "</information>")}
    stops = ("</search>", "</answer>")
    boxed = False
    joiner = "\n"
    top_k = 3

    def document(self, number: int, contents: str) -> str:
        """Lay out one document as ``Doc 1(Title: ...) text``."""
        title, _, body = contents.partition("\n")
        return f"Doc {number}(Title: {title}) {body}"

    def frame(self, body: str) -> str:
        """See TagProtocol."""
        opening, closing = self.tags["result"]
        return f"\n\n{opening}{body}{closing}\n\n"
