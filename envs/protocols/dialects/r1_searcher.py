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

from collections.abc import Sequence
from typing import ClassVar

from research_rl.envs.protocols.actions import Kind, Part
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
        """Write a turn inside the thought, which the prompt has opened."""
        return f" {thought} {self.block('search', ' '.join(queries))}"

    def answer(self, text: str, thought: str = "", opened: str = "") -> str:
        """Write a turn that ends the thought and answers."""
        return f"{thought} {self.tags['think'][1]} {self.block('answer', text)}"

    def _example(self) -> str:
        found = " ".join((self.tags["result"][0], "what was found", self.tags["result"][1]))
        first = self.search("a query", thought="what I need to find first")
        return f"{self.begins}{first} {found} {self.answer('the final answer', 'what follows')}"

    def parts(self, turn: str, kinds: Sequence[Kind] | None = None) -> list[Part]:
        """See TagProtocol; a thought may begin or end in another turn."""
        if kinds is not None:
            return super().parts(turn, kinds)
        found: list[Part] = []
        for part in super().parts(turn, ("search", "answer")):
            found += [part] if part.kind != "text" else self._thoughts(part.text)
        return found

    def _thoughts(self, text: str) -> list[Part]:
        opening, closing = self.tags["think"]
        found: list[Part] = []
        while text:
            inside, closed, behind = text.partition(closing)
            before, opened, thought = inside.partition(opening)
            if opened or closed:
                if opened and before:
                    found.append(Part("text", before))
                held = thought if opened else before
                found.append(Part("think", held, True, (opened, closed)))
            else:
                found.append(Part("text", text))
            text = behind
        return found

    def broken(self, turn: str, cut: bool = False) -> bool:
        """See Protocol; a thought may be left open in a turn."""
        return not (cut or all(part.closed for part in self.parts(turn)))
