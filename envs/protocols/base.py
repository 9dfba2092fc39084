"""The protocol: how a policy says what it wants, and how the environment answers it.

A protocol knows text and nothing else. All that knows a tag asks it::

    protocol.parse("<think> who? </think><search> boss of Bakset </search>")
    # Search(queries=('boss of Bakset',), errors=())
    protocol.reply([Found("boss of Bakset", passages)])
    # ' <result>\\n...\\n</result>'
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from research_rl.envs.protocols.actions import Action, Found, Part, Piece, Segment
from research_rl.envs.protocols.prompts import Prompt


class Protocol(ABC):
    """A way of speaking between policy and environment; without state, and blind to token ids.

    A method that reads text must not raise, whatever the text.
    """

    name: str = ""
    """What ``protocol=`` calls it; of a class of one's own, its dotted name."""
    stops: tuple[str, ...] = ()
    """Strings that end a turn; an end of sequence always does."""
    keeps_eos: bool = False
    """Whether each turn is a chat message of its own, which an end of sequence ends, and each
    reply one or more messages. Else the whole response is one message."""
    begins: str = ""
    """What a message of the policy begins with; given by the environment, not sampled."""
    max_queries: int | None = 1
    """Queries that a turn may hold; those beyond are answered with a note. None is no limit."""
    top_k: int = 5
    """Passages of a search that its published agents are shown."""
    thought: tuple[str, str] = ("<think>", "</think>")
    """What stands in front of a thought and behind it."""

    def __init_subclass__(cls) -> None:
        """Name a class after its place where it names itself by nothing."""
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = f"{cls.__module__}.{cls.__qualname__}"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abstractmethod
    def prompt(self, chat: bool = True, about: str | None = None) -> Prompt:
        """Return the prompt that tells the rules.

        Args:
            chat: messages for an instruction-tuned model; False is plain text for a base model.
            about: what the documents are; None is an encyclopedia.
        """

    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """Return what the model may call, as JSON schemas of OpenAI's layout; none for tags."""
        return ()

    @abstractmethod
    def parse(self, turn: str) -> Action:
        """Return what a turn asks for.

        Args:
            turn: what the policy wrote, behind what the prompt had opened; without the end of
                sequence.
        """

    @abstractmethod
    def reply(self, found: Sequence[Found], note: str = "", escape: bool = True) -> str:
        """Return what the policy reads next.

        Args:
            found: for each query of the turn, in order; at least one.
            note: of the environment, behind all.
            escape: make the protocol's tags in passages unreadable as such.
        """

    def pieces(self, reply: str) -> tuple[Piece, ...]:
        """Cut a reply into what is encoded by itself; joined, the texts need not be the reply."""
        return (Piece(reply, role="user" if self.keeps_eos else None),)

    @abstractmethod
    def content(self, reply: str) -> str:
        """Return what a reply holds, without tags and outer space; another text as it is."""

    @abstractmethod
    def format_error(self, segments: Sequence[Segment]) -> str | None:
        """Say what is wrong with the form of a finished response; None if nothing is.

        Only what the policy wrote counts, whatever was retrieved.
        """

    @abstractmethod
    def parts(self, turn: str) -> list[Part]:
        """Cut a turn into its blocks; joined, what was ``written`` is the turn again."""

    @abstractmethod
    def escape(self, text: str) -> str:
        """Return the text with the protocol's tags made unreadable as such."""

    @abstractmethod
    def search(self, *queries: str, thought: str = "", opened: str = "") -> str:
        """Write a turn that searches; tags in its texts are escaped.

        Args:
            queries: at least one, and at most ``max_queries``.
            thought: before them; "" for none.
            opened: what the prompt has opened of the turn, see Opened.

        Raises:
            ValueError: none, or too many queries.
        """

    def writable(self, queries: Sequence[str]) -> list[str]:
        """Return queries as they may be written: those that hold tags are escaped.

        So ``parse`` reads as many queries as were given, and a title that holds a tag is asked for
        as passages show it.

        Raises:
            ValueError: none, or more than ``max_queries``.
        """
        most = self.max_queries
        if not queries or (most is not None and len(queries) > most):
            wanted = "at least 1 query" if most is None else f"1 to {most} queries"
            wanted = "1 query" if most == 1 else wanted
            raise ValueError(
                f"a search of {self.name} must hold {wanted}, got {len(queries)}; write each of "
                "the others into a turn of its own"
            )
        return [self.escape(query) for query in queries]

    @abstractmethod
    def answer(self, text: str, thought: str = "", opened: str = "") -> str:
        """Write a turn that answers; see ``search``."""

    def forges_reply(self, turn: str) -> bool:
        """Return whether the policy wrote what only the environment may write."""
        return False

    def broken(self, turn: str, cut: bool = False) -> bool:
        """Return whether a block is closed but not open, opened inside another, or left open.

        Args:
            turn: of the policy.
            cut: whether the tokens ran out in it, so that its last block may stay open.
        """
        return not (cut or all(part.closed for part in self.parts(turn)))

    def writes_eos(self, turn: str, last: bool) -> bool:
        """Return whether a policy ends a turn with an end of sequence, not at a stop string.

        Args:
            turn: whole, not cut off by a budget.
            last: whether it is the last of its episode.
        """
        return (last or self.keeps_eos) and not turn.rstrip().endswith(self.stops)

    def overridden(self, turn: str) -> int:
        """Return how many searches a turn opens that are not run."""
        return 0

    def unclosed(self, text: str) -> str:
        """Return a turn with the stop string that a server may have cut off its end.

        Args:
            text: of a turn that a server ended without saying how.
        """
        return text
