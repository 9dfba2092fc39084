"""What a turn can ask for, what a search found, and the pieces that a response is made of.

``Search(("boss of Bakset",))`` asks for one thing, ``Search(("a", "b"))`` for two at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from research_rl.envs.types import Passage

NOTHING_TO_SEARCH = "nothing to search"
"""The text of the result of an empty query."""
NOTHING_FOUND = "no passage found"
"""What a search is answered that no passage matches."""
BUDGET_USED = "The search budget is used: answer now."
"""The end of the last result that an episode with ``max_searches`` gets."""


@dataclass(frozen=True)
class Search:
    """The policy asks for passages.

    Args:
        queries: what it asks for, in order; an empty one asks for nothing.
        errors: why a query cannot be asked, one for each, "" where it can: a tool call that is no
            JSON, for instance. Empty where every query can be.
    """

    queries: tuple[str, ...]
    errors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.errors and len(self.errors) != len(self.queries):
            raise ValueError(
                f"errors must have one text for each of {len(self.queries)} queries, got "
                f"{len(self.errors)}; write an empty text for a query that can be asked"
            )

    @property
    def query(self) -> str:
        """The queries, one a line."""
        return "\n".join(self.queries)

    @property
    def problems(self) -> tuple[str, ...]:
        """One for each query: why it cannot be asked, "" where it can."""
        return self.errors or ("",) * len(self.queries)


@dataclass(frozen=True)
class Answer:
    """The policy answers; ``text`` is the answer alone, as it was written."""

    text: str


@dataclass(frozen=True)
class Malformed:
    """The turn neither searches nor answers; ``reason`` says what is missing."""

    reason: str


Action: TypeAlias = Search | Answer | Malformed


@dataclass(frozen=True)
class Segment:
    """A piece of the response and who wrote it.

    What the prompt has opened of a turn, such as ``<think>``, stands in front of the policy's own
    text.
    """

    kind: Literal["policy", "env"]
    text: str


@dataclass(frozen=True)
class Found:
    """What one query of a turn brought.

    Args:
        query: as the policy wrote it.
        passages: best first.
        note: said to the policy in place of passages, or behind them.
    """

    query: str
    passages: Sequence[Passage] = ()
    note: str = ""


@dataclass(frozen=True)
class Piece:
    """A stretch of what the environment says, encoded to token ids by itself.

    Args:
        text: of it.
        trusted: control tokens in it count as such. Only what a protocol wrote itself may be
            trusted, never a question or a passage.
        role: of the chat message that the text is the content of; the model's chat template
            writes what stands around it. None is text that goes in as it is.
    """

    text: str
    trusted: bool = False
    role: str | None = None


Kind: TypeAlias = Literal["think", "search", "result", "answer", "refine", "text"]


class Part(NamedTuple):
    """A block of a turn, or the text between two blocks.

    Args:
        kind: what the block is for; "text" outside of all.
        text: what it holds, without its tags.
        closed: False for a block whose closing tag is missing.
        tags: in front of it and behind.
    """

    kind: Kind
    text: str
    closed: bool = True
    tags: tuple[str, str] | None = None

    @property
    def written(self) -> str:
        """The part as it stands in the turn, with its tags."""
        if self.kind == "text":
            return self.text
        opening, closing = self.tags or (f"<{self.kind}>", f"</{self.kind}>")
        return f"{opening}{self.text}" + closing * self.closed
