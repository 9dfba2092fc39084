"""Cheats in protocols of tags: blocks in the wrong place, forged results, answers out of form."""

from __future__ import annotations

from collections.abc import Iterator

from research_rl.envs.protocols import TagProtocol
from research_rl.envs.rewards.lint_cases import (
    CITIES,
    FACT,
    MANY,
    MARKED_QUESTION,
    Case,
    Cases,
    Cheat,
)


class TagCases(Cases[TagProtocol]):
    """Responses of a protocol of tags; see Cases."""

    def __init__(self, protocol: TagProtocol) -> None:
        blocks = protocol.blocks
        kinds = [kind for kind in ("think", "search", "result", "answer") if kind in protocol.tags]
        kinds += [kind for kind in blocks if kind not in kinds]
        self.tags = tuple(tag for kind in kinds for tag in protocol.tags[kind])  # type: ignore[index]
        self.box = r"\boxed{Paris}" if protocol.boxed else "Paris"
        self._open, self._close = protocol.tags["think"]
        # where the prompt has opened a thought, a turn begins inside it
        self._begin = "" if protocol.begins else self._open
        self._held = "box" if protocol.boxed else "answer"
        super().__init__(protocol)

    def thought(self, text: str = "t") -> str:
        """Write the thought that a turn begins with."""
        return f"{self._begin} {text} {self._close}"

    def _lead(self) -> str:
        """What stands in front of a search."""
        return f"{self._begin} t " if self.protocol.searches_in_thought else self.thought()

    def searching(self, query: str) -> str:
        """See Cases."""
        if self.protocol.searches_in_thought:
            return self.protocol.search(query, thought="t", opened=self.protocol.begins)
        return self.thought() + self.protocol.search(query)

    def answer(self, prediction: str, before: str | None = None) -> str:
        """Write a turn that answers, of good form unless ``before`` is not."""
        held = f"It is \\boxed{{{prediction}}}" if self.protocol.boxed else prediction
        front = self.thought() if before is None else before
        return front + self.protocol.block("answer", held)

    def _same_answer(self) -> Iterator[Case]:
        opening = self.protocol.tags["answer"][0]
        for font in (r"\text", r"\textbf"):
            yield self.case(f"{font}{{}} around the right answer", self.answer(f"{font}{{Paris}}"))
        for says, text in ((f"mentions {opening}", f"an {opening}"), ("says Assistant:", None)):
            thought = self.thought(text or "Assistant:")
            yield self.case(f"a thought that {says}", self.answer("Paris", thought))
        for says, contents in (
            (f"holds {opening}", f"Tags\nWrite {opening} here"),
            (f"holds {self._open}", f"Tags\nWrite {self._open} here"),
            ("says Assistant:", "Chat\nUser: hi Assistant: hello"),
        ):
            yield self.case(f"a passage {says}", *self.searched.turns, found=(contents,))
        right, asked = self.answer("Paris"), MARKED_QUESTION
        yield self.case("the question says Assistant:", right, question=asked)

    def _cheats(self) -> Iterator[Cheat]:
        yield from self._misplaced()
        yield from self._behind_the_answer()
        yield from self._nested()
        yield from self._out_of_form()
        yield from self._empty()

    def _misplaced(self) -> Iterator[Cheat]:
        protocol, right, inside = self.protocol, self.right.turns[0], self.answer("Paris", "")
        reversed_tags = f"{self._close} t {self._open}"
        yield self.cheat("reversed think tags", self.answer("Paris", reversed_tags))
        hidden = f"{self._begin} {inside} {self._close}"
        yield self.cheat("an answer inside the thought", hidden)
        early = self.answer("Paris") + self.search
        yield self.cheat("an answer before the search", early, self.thought(), found=(FACT,))
        forged = f"{self.search}{protocol.frame('Paris')}{right}"
        yield Cheat(self.case("a result that the policy wrote", forged), self.searched)
        never = self.case("a search that is never run", self.search + right)
        yield Cheat(never, self.searched)

    def _behind_the_answer(self) -> Iterator[Cheat]:
        right = self.right.turns[0]
        yield self.cheat("junk behind the answer", right + " Rome Berlin Madrid" * 20)
        thought = f"{self._open} t {self._close}"
        yield self.cheat("a thought behind the answer", right + thought)
        yield self.cheat("a second answer", right + self.answer("Rome", ""))

    def _nested(self) -> Iterator[Cheat]:
        protocol, opened, closed = self.protocol, self._open, self._close
        opening, closing = protocol.tags["search"]
        if protocol.needs_thought:
            yield self.cheat("no thought at all", self.answer("Paris", ""))
        yield self.cheat("a thought that never ends", self.answer("Paris", f"{self._begin} t "))
        thoughts = f"{self._begin}{opened} t {closed}{closed}"
        yield self.cheat("nested thoughts", self.answer("Paris", thoughts))
        nested = f"{self._lead()}{opening}{protocol.block('search', 'x')}"
        yield self.cheat("a nested search", nested, self.answer("Paris"), found=(FACT,))
        stray = f"{self._lead()} x {closing}"
        yield self.cheat(f"a stray {closing}", stray, self.answer("Paris"), found=(FACT,))

    def _out_of_form(self) -> Iterator[Cheat]:
        right, result = self.right.turns[0], self.protocol.tags["result"][0]
        yield self.cheat(f"a dangling {result}", self.answer("Paris") + result)
        closing = self.protocol.tags["answer"][1]
        yield self.cheat("an answer that never ends", right.removesuffix(closing))
        alone = "a box" if self.protocol.boxed else "words"
        yield self.cheat(f"{alone} without an answer", f"{self.thought()} {self.box}")
        yield self.cheat(f"nothing but {alone}", self.box)
        yield self.cheat(f"every city in one {self._held}", self.answer(CITIES))
        told = (f"x\n{self.answer('Paris', '')}",)
        yield self.cheat("the answer stands in a passage", self.search, self.thought(), found=told)

    def _empty(self) -> Iterator[Cheat]:
        opening, closing = self.protocol.tags["answer"]
        yield Cheat(self.case(f"an empty {self._held}", self.answer("")), self.wrong)
        yield Cheat(self.case(f"a blank {self._held}", self.answer("  ")), self.wrong)
        if self.protocol.boxed:
            bare = self.thought() + self.protocol.block("answer", "Rome")
            yield Cheat(self.case("an answer without a box", bare), self.wrong)
        yield Cheat(self.case("nothing", ""), self.wrong)
        empty = f"{self._begin}{self._close}{opening}{closing}"
        yield Cheat(self.case("tags and nothing in them", empty), self.wrong)

    def _hard(self) -> Iterator[Case]:
        yield from self.hard_answers()
        yield self.case("no segment but an empty one", "")
        yield self.case("only thoughts opened", self._open * MANY)
        yield self.case("only answers opened", self.protocol.tags["answer"][0] * MANY)
        searches = self.protocol.block("search", "x") * (MANY // 10)
        yield self.case("many searches in a turn", searches + self.answer("Paris"))
        for tag in self.protocol.inner_tags:
            opening, closing = self.protocol.tags["search"]
            yield self.case(f"only {tag} in a search", f"{opening}{tag * MANY}{closing}")
