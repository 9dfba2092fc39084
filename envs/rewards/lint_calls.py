"""Cheats in protocols of tool calls: calls that are not run, forged results, empty answers."""

from __future__ import annotations

from collections.abc import Iterator

from research_rl.envs.protocols import CallProtocol
from research_rl.envs.rewards.lint_cases import (
    CITIES,
    FACT,
    MANY,
    MARKED_QUESTION,
    QUERY,
    Case,
    Cases,
    Cheat,
)

_OPEN, _CLOSE = "<think>", "</think>"


class CallCases(Cases[CallProtocol]):
    """Responses of a protocol of tool calls; see Cases."""

    box = r"\boxed{Paris}"

    def __init__(self, protocol: CallProtocol) -> None:
        self.tags = (*protocol.tags, protocol.written(QUERY))
        self._call = protocol.written(QUERY)
        self._begin = "" if protocol.begins else _OPEN
        super().__init__(protocol)

    def thought(self, text: str = "t") -> str:
        """Write the thought that a message begins with."""
        return f"{self._begin}\n{text}\n{_CLOSE}\n\n"

    def searching(self, query: str) -> str:
        """See Cases."""
        return self.protocol.search(query, thought="t", opened=self.protocol.begins)

    def answer(self, prediction: str, before: str | None = None) -> str:
        """Write a message that answers, of good form unless ``before`` is not."""
        said = self.protocol.answer(prediction)
        return (self.thought() if before is None else before) + said

    def _same_answer(self) -> Iterator[Case]:
        tag = self.protocol.tags[0]
        for font in (r"\text", r"\textbf"):
            yield self.case(f"{font}{{}} around the right answer", self.answer(f"{font}{{Paris}}"))
        for says, text in ((f"mentions {tag}", f"a {tag}"), ("says Assistant:", "Assistant:")):
            yield self.case(f"a thought that {says}", self.answer("Paris", self.thought(text)))
        for held in dict.fromkeys((*self.protocol.tags, self._call, "Assistant:")):
            contents = (f"Tags\nWrite {held} here",)
            yield self.case(f"a passage holds {held}", *self.searched.turns, found=contents)
        if not self.protocol.boxed:
            yield self.case("the right answer without a box", f"{self.thought()}Paris")
        if self.protocol.max_queries != 1:
            both = self.protocol.search(QUERY, "Paris", thought="t", opened=self.protocol.begins)
            yield self.case("two calls in a message", both, self.answer("Paris"), found=(FACT,))
        right, asked = self.answer("Paris"), MARKED_QUESTION
        yield self.case("the question says Assistant:", right, question=asked)

    def _cheats(self) -> Iterator[Cheat]:
        yield from self._wrong_thoughts()
        yield from self._wrong_calls()
        yield from self._wrong_answers()

    def _wrong_thoughts(self) -> Iterator[Cheat]:
        yield self.cheat("reversed think tags", self.answer("Paris", f"{_CLOSE} t {_OPEN}"))
        inside = self.protocol.answer("Paris")
        yield self.cheat("an answer inside the thought", f"{self._begin} {inside} {_CLOSE}")
        yield self.cheat("a thought that never ends", self.answer("Paris", f"{self._begin} t "))
        nested = f"{self._begin}{_OPEN} t {_CLOSE}{_CLOSE}"
        yield self.cheat("nested thoughts", self.answer("Paris", nested))
        yield self.cheat("a thought closed twice", self.answer("Paris", self.thought() + _CLOSE))
        if self.protocol.needs_thought:
            yield self.cheat("no thought at all", inside)

    def _wrong_calls(self) -> Iterator[Cheat]:
        protocol, right, fact = self.protocol, self.right.turns[0], (FACT,)
        answered = self.answer("Paris")
        never = self.case("a call that is never run", self.search + right)
        yield Cheat(never, self.searched)
        forged = f"{self.search}\n<tool_response>\nParis\n</tool_response>\n"
        yield Cheat(self.case("a result that the policy wrote", forged + answered), self.searched)
        yield self.cheat("a result in front of the answer", "<tool_response>" + answered)
        first = self.answer("Paris") + self._call
        yield self.cheat("an answer before the call", first, self.thought(), found=fact)
        other = self.search.replace(protocol.tool, "fly")
        yield self.cheat("a call of a tool that is not there", other, answered, found=fact)
        cut = self.thought() + self._call[: len(self._call) * 2 // 3]
        yield self.cheat("a call that is cut off", cut, answered, found=fact)
        empty = self.search.replace("query", "q")
        yield self.cheat("a call without a query", empty, answered, found=fact)
        yield self.cheat("a turn that does not call", right, answered)
        told = (f"x\n{self.protocol.answer('Paris')}",)
        yield self.cheat("the answer stands in a passage", self.search, self.thought(), found=told)

    def _wrong_answers(self) -> Iterator[Cheat]:
        yield self.cheat("every city in one box", self.answer(CITIES))
        second = self.right.turns[0] + " or " + self.protocol.answer("Rome")
        yield self.cheat("a second answer", second)
        if self.protocol.boxed:
            yield self.cheat("an answer without a box", f"{self.thought()}Paris")
        for name, text in (
            ("an empty box", self.answer("")),
            ("a blank box", self.answer("  ")),
            ("nothing", ""),
            ("a thought and no answer", self.thought()),
        ):
            yield Cheat(self.case(name, text), self.wrong)

    def _hard(self) -> Iterator[Case]:
        yield from self.hard_answers()
        yield self.case("no segment but an empty one", "")
        for name, text in (
            ("only thoughts opened", _OPEN * MANY),
            ("only thoughts closed", _CLOSE * MANY),
            ("only calls opened", self.protocol.tags[0] * MANY),
            ("only results opened", "<tool_response>\n" * MANY),
            ("a call that nests deeply", self._call.replace(f'"{QUERY}"', "[" * MANY)),
            ("a call that holds a huge number", self._call.replace(f'"{QUERY}"', "9" * MANY)),
            ("only parameters opened", self._call.replace(QUERY, "<parameter=x>" * MANY)),
            ("many calls in a message", "\n".join([self._call] * (MANY // 10))),
        ):
            yield self.case(name, text)
