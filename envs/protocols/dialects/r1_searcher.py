"""``r1_searcher``: the tags of R1-Searcher (arXiv 2503.05592).

The prompt opens a thought, and searches stand inside it::

    <think> I need the boss. <|begin_of_query|> boss of Bakset <|end_of_query|>

    <|begin_of_documents|>
    (1)boss of Bakset
    the boss of Bakset is Domlor .
    <|end_of_documents|>

    So it is Domlor. </think> <answer> Domlor </answer>

The tags look like control tokens, but are plain text for the models. Layout: repository
RUCAIBox/R1-Searcher, OpenRLHF-RAG/openrlhf/trainer/ppo_utils/experience_maker.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from research_rl.envs.protocols.actions import Kind, Part
from research_rl.envs.protocols.prompts import opens_thought
from research_rl.envs.protocols.tags import TagProtocol, Tags


class R1Searcher(TagProtocol):
    """Queries and documents between ``<|begin_of_...|>`` and ``<|end_of_...|>``."""

    name = "r1_searcher"
    tags: ClassVar[Tags] = {
        **TagProtocol.tags,
        "search": ("<|begin_of_query|>", "<|end_of_query|>"),
        "result": ("<|begin_of_documents|>", "<|end_of_documents|>"),
    }
    stops = ("<|end_of_query|>", "</answer>")
    begins = "<think>"
    boxed = False
    searches_in_thought = True
    joiner = "\n"

    def queries_in(self, asked: str) -> tuple[str, ...]:
        """Return the query without quotes, its white space folded."""
        return (" ".join(asked.replace('"', "").split()),)

    def document(self, number: int, contents: str) -> str:
        """Lay out one document as ``(1)title`` and its body."""
        return f"({number}){contents}"

    def frame(self, body: str) -> str:
        """See TagProtocol."""
        opening, closing = self.tags["result"]
        return f"\n\n{opening}\n{body}\n{closing}\n\n"

    def rules(self, about: str) -> str:
        """See TagProtocol."""
        return (
            f"{super().rules(about)} Search while you think: the thought goes on behind a result."
        )

    def search(self, *queries: str, thought: str = "", opened: str = "") -> str:
        """Write a turn inside the thought, which the prompt has opened unless it closed one."""
        asked = " ".join(self.writable(queries))
        return f"{self._reopened(opened)} {self.escape(thought)} {self.block('search', asked)}"

    def answer(self, text: str, thought: str = "", opened: str = "") -> str:
        """Write a turn that ends the thought and answers."""
        ended = f"{self._reopened(opened)} {self.escape(thought)} {self.tags['think'][1]}"
        return f"{ended} {self.block('answer', self.escape(text))}"

    def _reopened(self, opened: str) -> str:
        return self.tags["think"][0] if opened and not opens_thought(opened) else ""

    def _example(self) -> str:
        found = " ".join((self.tags["result"][0], "what was found", self.tags["result"][1]))
        first = self.search("a query", thought="what I need to find first")
        return f"{self.begins}{first} {found}{self.answer('the final answer', 'what follows')}"

    def parts(self, turn: str, kinds: Sequence[Kind] | None = None) -> list[Part]:
        """See TagProtocol; a thought may begin or end in another turn."""
        if kinds is not None:
            return super().parts(turn, kinds)
        opening, closing = self.tags["think"]
        texts = re.split(f"({re.escape(opening)}|{re.escape(closing)})", turn)
        found: list[Part] = []
        before = ""
        for text, tag in zip(texts[::2], [*texts[1::2], ""], strict=True):
            if before or tag == closing:
                found += self._within(text, before, tag if tag == closing else "")
            else:
                found += super().parts(text, ("search", "answer"))
            before = tag if tag == opening else ""
        return found

    def _within(self, text: str, opening: str, closing: str) -> list[Part]:
        """Cut a thought at its searches; the rest is thought, between the tags that are there."""
        pieces = super().parts(text, ("search",))
        if not pieces or pieces[0].kind == "search":
            pieces.insert(0, Part("text", ""))
        if pieces[-1].kind == "search":
            pieces.append(Part("text", ""))
        found: list[Part] = []
        for number, part in enumerate(pieces):
            tags = (opening * (number == 0), closing * (number == len(pieces) - 1))
            if part.kind == "search":
                found.append(part)
            elif part.text or any(tags):
                found.append(Part("think", part.text, True, tags))
        return found

    def _wrong_in(self, kind: Kind) -> list[str]:
        searches, answers = self.tags["search"], self.tags["answer"]
        if kind == "think":
            return [searches[1]]
        return [searches[1], answers[1]] if kind == "text" else [*searches, *answers]
