r"""Protocols of tags: a response is one text, with blocks such as ``<search> ... </search>`` in it.

A turn is free text that ends in a search, or in an answer. The environment's reply goes on in the
same text. A dialect is a class that says how its tags are written and how a result is laid out::

    class Bracketed(TagProtocol):
        tags = {**TagProtocol.tags, "search": ("[search]", "[/search]")}
        stops = ("[/search]",)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from research_rl.envs.protocols.actions import (
    Action,
    Answer,
    Found,
    Kind,
    Malformed,
    Part,
    Search,
    Segment,
)
from research_rl.envs.protocols.base import Protocol
from research_rl.envs.protocols.boxes import last_boxed, tagged, unreadable
from research_rl.envs.protocols.prompts import (
    Prompt,
    no_plain_prompt,
    opens_thought,
    rules_prompt,
)
from research_rl.envs.types import Passage

Tags = Mapping[Kind, tuple[str, str]]


class TagProtocol(Protocol):
    """What protocols of tags have in common; ReSearch's own tags unless a class says otherwise."""

    tags: ClassVar[Tags] = {
        "think": ("<think>", "</think>"),
        "search": ("<search>", "</search>"),
        "result": ("<result>", "</result>"),
        "answer": ("<answer>", "</answer>"),
    }
    """In front of and behind a block of each kind."""
    blocks: ClassVar[tuple[Kind, ...]] = ("think", "search", "answer")
    """The kinds that a policy writes."""
    inner_tags: ClassVar[tuple[str, ...]] = ()
    """Tags inside of a block, which passages must not hold either."""
    boxed: ClassVar[bool] = True
    r"""Whether the answer is what a ``\boxed{}`` inside its tags holds, not all that they hold."""
    needs_thought: ClassVar[bool] = True
    """Whether a response of good form holds a thought."""
    searches_in_thought: ClassVar[bool] = False
    """Whether a search stands inside a thought, which goes on behind the result."""
    stops: tuple[str, ...] = ("</search>",)

    _tag: ClassVar[re.Pattern[str]]
    _written: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        """Compile the patterns of a class."""
        super().__init_subclass__()
        cls._compile()

    @classmethod
    def _compile(cls) -> None:
        needed = {"think", "search", "result", "answer"}
        if missing := sorted(needed - {kind for kind, pair in cls.tags.items() if all(pair)}):
            raise ValueError(
                f"tags of {cls.__name__} must say how a block of each kind begins and ends, got "
                f"none for {', '.join(missing)}; begin with {{**TagProtocol.tags, ...}}"
            )
        closings = {closing for _, closing in cls.tags.values()}
        if "stops" not in vars(cls) and not {*cls.stops} <= closings:
            cls.stops = (cls.tags["search"][1],)  # inherited ones, of other tags
        written = {tag for pair in cls.tags.values() for tag in pair} | set(cls.inner_tags)
        # the longest first, so that no tag hides one that begins like it
        cls._written = tuple(sorted(written, key=len, reverse=True))
        cls._tag = re.compile("|".join(map(re.escape, cls._written)))
        cls.thought = cls.tags["think"]

    def prompt(self, chat: bool = True, about: str | None = None) -> Prompt:
        """See Protocol.

        Raises:
            ValueError: plain text is asked for, and replies are messages of a chat.
        """
        if self.keeps_eos and not chat:
            raise no_plain_prompt(self.name)
        return rules_prompt(self.rules(about or "an encyclopedia"), chat, self.begins)

    def rules(self, about: str) -> str:
        """Return the rules in words.

        Args:
            about: what the documents are; it completes ``a search tool over ...``.
        """
        think, search, result, answer = (
            " ".join(self.tags[kind]) for kind in ("think", "search", "result", "answer")
        )
        held = "nothing but the final answer"
        held = rf"with {held} inside \boxed{{}}" if self.boxed else f"and {held}"
        return (
            "Answer the question step by step. You can look things up with a search tool over "
            f"{about}. Write your reasoning inside {think}. To look something up, write a short "
            f"query inside {search}; what the tool finds comes back inside {result}. Read it, "
            "think again, and search as often as something is missing. When you know the answer, "
            f"write it inside {answer}, {held}. For example: {self._example()}"
        )

    def _example(self) -> str:
        found = " ".join((self.tags["result"][0], "what was found", self.tags["result"][1]))
        first = self.search("a query", thought="what I need to find first")
        return f"{first} {found} {self.answer('the final answer', 'what follows from it')}"

    def parse(self, turn: str) -> Action:
        r"""Return what a turn asks for.

        A turn with a closed search and no complete answer behind it is a search, also where
        characters follow the tag: the token that completes the stop string may hold more than it
        (``>\n``). The query stands between the last two tags; without an opening one it is empty.
        """
        opening, closing = self.tags["search"]
        head, stop, tail = turn.rpartition(closing)
        answer = tagged(tail, *self.tags["answer"])
        if stop and answer is None:
            _, opened, asked = head.rpartition(opening)
            return Search(self.queries_in(asked) if opened else ("",))
        if answer is None:
            wanted = " and no ".join(" ... ".join(self.tags[k]) for k in ("search", "answer"))
            return Malformed(f"no {wanted}")
        if not self.boxed:
            return Answer(answer.strip())
        held = last_boxed(answer)
        return Malformed("no \\boxed{} in the answer") if held is None else Answer(held)

    def queries_in(self, asked: str) -> tuple[str, ...]:
        """Return the queries that a search block holds; at least one, "" for none."""
        return (asked.strip(),)

    def reply(self, found: Sequence[Found], note: str = "", escape: bool = True) -> str:
        """See Protocol."""
        texts: list[str] = []
        for one in found:
            shown = [self._document(n, p, escape) for n, p in enumerate(one.passages, 1)]
            own = [self.joiner.join(shown)] if shown else []
            own += [self.escape(one.note) if escape else one.note] if one.note else []
            if len(found) > 1:
                own = ["\n".join([self.escape(one.query), *own])]
            texts += own
        return self.frame("\n\n".join([*texts, note] if note else texts).strip())

    joiner: ClassVar[str] = "\n\n"
    """Between two documents of a result."""

    def _document(self, number: int, passage: Passage, escape: bool) -> str:
        contents = self.escape(passage.contents) if escape else passage.contents
        return self.document(number, contents)

    def document(self, number: int, contents: str) -> str:
        """Lay out one document of a result.

        Args:
            number: from 1.
            contents: title, a newline and the body.
        """
        return contents

    def frame(self, body: str) -> str:
        """Put the tags of a result around its text, with the space that belongs there."""
        opening, closing = self.tags["result"]
        return f" {opening}\n{body}\n{closing}"

    def content(self, reply: str) -> str:
        """See Protocol."""
        text = reply.strip()
        opening, closing = self.tags["result"]
        if text.startswith(opening) and text.endswith(closing):
            return text.removeprefix(opening).removesuffix(closing).strip()
        return text

    def format_error(self, segments: Sequence[Segment]) -> str | None:
        r"""Say what is wrong with the form of a finished response; None if nothing is.

        Only what the policy wrote is read. Each of its turns but the last must end in one search;
        the last must end in one answer, outside of any thought, with something in it. Where the
        protocol wants thoughts there must be one somewhere. Inside a thought the tags of searches
        and answers are words like others, unless they end a turn; text between the blocks is free,
        behind the answer it is not.
        """
        turns = [segment.text for segment in segments if segment.kind == "policy"]
        if not turns:
            return "the policy wrote nothing"
        thoughts, state = 0, "text"
        for number, turn in enumerate(turns, 1):
            reader = _Reader(self, state)
            error = reader.read(turn, final=number == len(turns))
            if error is not None:
                return error
            thoughts += reader.thoughts
            state = "think" if reader.within else "text"
        if self.needs_thought and not thoughts:
            return f"no {' ... '.join(self.tags['think'])}"
        if not self.boxed:
            return None if reader.answer.strip() else "the answer is empty"
        held = last_boxed(reader.answer)
        if held is None:
            return "no \\boxed{} in the answer"
        return None if held.strip() else "the \\boxed{} is empty"

    def parts(self, turn: str, kinds: Sequence[Kind] | None = None) -> list[Part]:
        """Cut a turn at its tags; joined, what was ``written`` is the turn again.

        A block reaches from its opening tag to the next closing tag of its kind, or else to the
        end; other tags inside it are text.

        Args:
            turn: any text.
            kinds: the blocks to cut out; tags of others are text. None is all that a policy writes.
        """
        by_opening = {self.tags[kind][0]: kind for kind in kinds or self.blocks}
        openings = re.compile("|".join(map(re.escape, by_opening)))
        found: list[Part] = []
        begin = 0
        while (match := openings.search(turn, begin)) is not None:
            found += _between(turn[begin : match.start()])
            kind = by_opening[match[0]]
            closing = self.tags[kind][1]
            end = turn.find(closing, match.end())
            closed = end >= 0
            end = end if closed else len(turn)
            usual = self.tags[kind] == (f"<{kind}>", f"</{kind}>")
            tags = None if usual else self.tags[kind]
            found.append(Part(kind, turn[match.end() : end], closed, tags))
            begin = end + len(closing) * closed
        return found + _between(turn[begin:])

    def escape(self, text: str) -> str:
        """Return the text with the protocol's tags made unreadable (``<`` as ``&lt;``)."""
        return unreadable(text, self._written)

    def search(self, *queries: str, thought: str = "", opened: str = "") -> str:
        """See Protocol."""
        asked = " ".join(self.writable(queries))
        return f"{self._thought(thought, opened)}{self.block('search', asked)}"

    def answer(self, text: str, thought: str = "", opened: str = "") -> str:
        """See Protocol."""
        text = self.escape(text)
        held = rf"The answer is \boxed{{{text}}}" if self.boxed else text
        return f"{self._thought(thought, opened)}{self.block('answer', held)}"

    def block(self, kind: Kind, text: str) -> str:
        """Return the text inside the tags of its kind, with a space on both sides."""
        opening, closing = self.tags[kind]
        return f"{opening} {text} {closing}"

    def _thought(self, thought: str, opened: str) -> str:
        thought = self.escape(thought)
        if opens_thought(opened, self.thought[0]):
            return f" {thought} {self.tags['think'][1]} "
        return f"{self.block('think', thought)} " if thought else ""

    def forges_reply(self, turn: str) -> bool:
        """See Protocol."""
        return any(tag in turn for tag in self.tags["result"])

    def broken(self, turn: str, cut: bool = False) -> bool:
        """See Protocol; tags of results are left out, and of searches and answers in a thought."""
        found = self.parts(turn)
        if any(tag in part.text for part in found for tag in self._wrong_in(part.kind)):
            return True
        return not (cut or all(part.closed for part in found))

    def _wrong_in(self, kind: Kind) -> list[str]:
        openings, closings = ([self.tags[block][side] for block in self.blocks] for side in (0, 1))
        if kind == "text":
            return closings
        # a thought may speak of the others, as the format check allows
        return [self.tags["think"][0]] if kind == "think" else openings + closings

    def overridden(self, turn: str) -> int:
        """See Protocol."""
        opening, closing = self.tags["search"]
        return max(0, turn.count(opening) - 1) if closing in turn else 0

    def unclosed(self, text: str) -> str:
        """Return the turn, closed where it ends in an open search or answer that holds something.

        Only a block whose closing tag ends a turn can have lost it.
        """
        cut_off = [tags for tags in self.tags.values() if tags[1] in self.stops]
        opening, closing = max(cut_off, key=lambda tags: text.rfind(tags[0]), default=("", ""))
        _, opened, held = text.rpartition(opening) if opening else ("", "", "")
        for tag in self.inner_tags:
            held = held.replace(tag, " ")
        ended = any(end in held for end in ("</", *(tags[1] for tags in self.tags.values())))
        return text + closing if opened and held.strip() and not ended else text


TagProtocol._compile()


def _between(text: str) -> list[Part]:
    return [Part("text", text)] if text else []


class _Reader:
    """The state machine of one turn; ``state`` is text, over, or the kind of an open block."""

    def __init__(self, protocol: TagProtocol, state: str = "text") -> None:
        tags = protocol.tags
        self._nests = protocol.searches_in_thought
        self._tag, self._tags = protocol._tag, tags
        self._opened_by = {tags[kind][0]: kind for kind in protocol.blocks}
        self._opening_of = {tags[kind][1]: tags[kind][0] for kind in protocol.blocks}
        mentions = {tag for kind in protocol.blocks for tag in tags[kind] if kind != "think"}
        self._mentions = mentions - set(protocol.stops)  # inside a thought these are words
        self._inner = protocol.inner_tags
        self.state = state
        self.within = False
        """Whether the turn ended in a search inside a thought."""
        self.last_tag = ""
        self.thoughts = 0
        self.answer = ""

    def read(self, turn: str, final: bool) -> str | None:
        """Return what is wrong with the turn; the last one must answer, the others search."""
        begin = 0
        for match in self._tag.finditer(turn):
            if match[0] in self._inner:
                continue
            error = self._step(match[0], turn[begin : match.start()])
            if error is not None:
                return error
            begin = match.end()
        if self.state not in ("text", "over"):
            return f"{self._tags[self.state][0]} is not closed"  # type: ignore[index]
        if final and self.last_tag != self._tags["answer"][1]:
            return f"no {' ... '.join(self._tags['answer'])}"
        if not final and self.last_tag != self._tags["search"][1]:
            return "a turn before the last does not end in a search"
        if final and turn[begin:].strip():
            return "text behind the answer"
        return None

    def _step(self, tag: str, text: str) -> str | None:
        """Take one tag and the text in front of it; return what is wrong with it."""
        if tag in self._tags["result"]:
            return f"the policy wrote {tag}"
        if self.state == "over":
            return f"{tag} behind {self.last_tag}"
        if self.state == "text":
            if tag not in self._opened_by:
                return f"{tag} without {self._opening_of[tag]}"
            if self._nests and tag == self._tags["search"][0]:
                return f"{tag} outside {self._tags['think'][0]}"
            self.state = self._opened_by[tag]
        elif self._nests and self.state == "think" and tag == self._tags["search"][0]:
            self.state, self.within = "search", True
        elif tag == self._tags[self.state][1]:  # type: ignore[index]
            self.thoughts += self.state == "think"
            if self.state == "answer":
                self.answer = text
            self.state = "over" if self.state in ("search", "answer") else "text"
        elif self.state != "think" or tag not in self._mentions:
            return f"{tag} inside {self._tags[self.state][0]}"  # type: ignore[index]
        self.last_tag = tag
        return None
