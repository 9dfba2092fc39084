"""``o2``: the tags of O2-Searcher (arXiv 2505.16582): up to five queries in one search.

::

    <think> I need two bosses. </think>
    <search>
    <query>boss of Bakset</query>
    <query>boss of Domlor</query>
    </search>

The reply is a message of the user, with what the queries found in their order::

    Search learnings: <learnings>...
    ...</learnings>.

Layout: repository Acade-Mate/O2-Searcher, o2searcher/generation.py and scripts/eval/infer_agent.py.
As the latter does, the policy's message is ended before the user's begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from research_rl.envs.protocols.actions import Found, Piece
from research_rl.envs.protocols.boxes import all_tagged
from research_rl.envs.protocols.tags import TagProtocol, Tags

_LEARNINGS = re.compile(r"\ASearch learnings: <learnings>(.*)</learnings>\.\n\Z", re.DOTALL)


class O2(TagProtocol):
    """``<query>`` tags inside ``<search>``, and a message of the user as reply."""

    name = "o2"
    tags: ClassVar[Tags] = {**TagProtocol.tags, "result": ("<learnings>", "</learnings>")}
    inner_tags: ClassVar[tuple[str, str]] = ("<query>", "</query>")
    stops = ("</search>", "</answer>")
    keeps_eos = True
    boxed = False
    max_queries = 5
    joiner = " "
    top_k = 3

    def queries_in(self, asked: str) -> tuple[str, ...]:
        """Return the text of each ``<query>``; without one, the whole search is one query."""
        found = tuple(query.strip() for query in all_tagged(asked, *self.inner_tags))
        opening, closing = self.inner_tags
        return found or (asked.replace(opening, "").replace(closing, "").strip(),)

    def reply(self, found: Sequence[Found], note: str = "", escape: bool = True) -> str:
        """Return the learnings of all queries, one block each."""
        blocks = []
        for one in found:
            shown = [self._document(n, p, escape) for n, p in enumerate(one.passages, 1)]
            noted = self.escape(one.note) if escape else one.note
            blocks.append(self.joiner.join([*shown, *([noted] * bool(noted))]))
        return self.frame("\n".join([*blocks, note] if note else blocks).strip())

    def frame(self, body: str) -> str:
        """See TagProtocol."""
        opening, closing = self.tags["result"]
        return f"Search learnings: {opening}{body}{closing}.\n"

    def content(self, reply: str) -> str:
        """See Protocol."""
        held = _LEARNINGS.match(reply)
        return (held[1] if held else reply).strip()

    def pieces(self, reply: str) -> tuple[Piece, ...]:
        """Return one message of the user."""
        return (Piece(reply, role="user"),)

    def rules(self, about: str) -> str:
        """See TagProtocol."""
        return (
            f"{super().rules(about)} One search may hold up to {self.max_queries} queries, each "
            "inside <query> </query>; they are answered together."
        )

    def search(self, *queries: str, thought: str = "", opened: str = "") -> str:
        """See Protocol."""
        lines = "".join(f"<query>{query}</query>\n" for query in self.writable(queries))
        opening, closing = self.tags["search"]
        return f"{self._thought(thought, opened)}{opening}\n{lines}{closing}"
