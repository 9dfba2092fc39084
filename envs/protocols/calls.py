r"""Protocols of tool calls: each turn is a chat message, and a search is a call of a tool.

::

    <tool_call>
    {"name": "search", "arguments": {"query": "boss of Bakset"}}
    </tool_call>

A message without a call is the answer. The environment's reply is one message of the tool for each
call. A call that cannot be read is answered with what is wrong with it.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, NamedTuple

from research_rl.envs.protocols.actions import (
    Action,
    Answer,
    Found,
    Malformed,
    Part,
    Piece,
    Search,
    Segment,
)
from research_rl.envs.protocols.base import Protocol
from research_rl.envs.protocols.boxes import (
    all_tagged,
    answer_content,
    last_boxed,
    unreadable,
)
from research_rl.envs.protocols.prompts import Prompt, no_plain_prompt, opens_thought

_THINK = re.compile(r"<think>|</think>")
_SHOWN = 80  # characters of a wrong call that its error names


class Call(NamedTuple):
    """A call as it stands in a message.

    Args:
        begin: of its text in the message.
        end: of it.
        query: asked for; "" where there is none.
        error: why it cannot be run; "" if it can.
        closed: whether its closing tag is there.
    """

    begin: int
    end: int
    query: str
    error: str = ""
    closed: bool = True


class CallProtocol(Protocol):
    """What protocols of tool calls have in common."""

    keeps_eos = True
    max_queries = 8
    tool: ClassVar[str] = "search"
    """Name of the tool."""
    boxed: ClassVar[bool] = False
    r"""Whether an answer must stand in a ``\boxed{}``; else it may, or be the whole message."""
    needs_thought: ClassVar[bool] = False
    """Whether each message of good form holds a thought."""
    result_tags: ClassVar[tuple[str, str]] = ("<tool_response>", "</tool_response>")
    """Around what each call found; a subclass that sets its own need not repeat ``tags``."""
    tags: ClassVar[tuple[str, ...]] = (
        *("<tool_call>", "</tool_call>"),
        *result_tags,
        *Protocol.thought,
    )
    """What passages must not hold, for some tokenizers read it as one control token."""

    def __init_subclass__(cls) -> None:
        """Let no passage hold the tags of results that a subclass has."""
        super().__init_subclass__()
        cls.tags = tuple(dict.fromkeys((*cls.tags, *cls.result_tags)))

    @abstractmethod
    def calls(self, text: str) -> list[Call]:
        """Return the calls of a message, in order.

        Args:
            text: of the message, thoughts blanked out.
        """

    @abstractmethod
    def written(self, query: str) -> str:
        """Write a call."""

    def message(self, text: str, calls: Sequence[tuple[str, str]]) -> str:
        """Write a message whose calls somebody else has read, as servers do.

        What is wrong with a call stays wrong, for ``parse`` to say.

        Args:
            text: of the message, in front of the calls.
            calls: name and arguments of each; the arguments as JSON.
        """
        written = [self.told(name, arguments) for name, arguments in calls]
        between = "\n" if text.strip() and not text.endswith("\n") else ""
        return (text + between if text.strip() else "") + "\n".join(written)

    def told(self, name: str, arguments: str) -> str:
        """Write a call by its name and its arguments as JSON, also one that cannot be run."""
        call = self.call(0, 0, {"name": name, "arguments": arguments}, "arguments")
        if not call.error:
            return self.written(self.escape(call.query))
        wrong = self.wrong(name, arguments)
        return wrong if any(one.error for one in self.calls(wrong)) else self.written("")

    def wrong(self, name: str, arguments: str) -> str:
        """Write a call that cannot be run, so that ``calls`` finds what is wrong with it."""
        given = self.escape(arguments.strip() or "{}")
        return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {given}}}\n</tool_call>'

    def schema(self, about: str = "an encyclopedia") -> dict[str, Any]:
        """Return the tool as a JSON schema in OpenAI's layout."""
        query = {"type": "string", "description": "What to look for, in a few words."}
        return {
            "type": "function",
            "function": {
                "name": self.tool,
                "description": f"Search {about} and read the passages that fit best.",
                "parameters": {
                    "type": "object",
                    "properties": {"query": query},
                    "required": ["query"],
                },
            },
        }

    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """See Protocol."""
        return (self.schema(),)

    def prompt(self, chat: bool = True, about: str | None = None) -> Prompt:
        """See Protocol.

        Raises:
            ValueError: plain text is asked for; tool calls need a chat template.
        """
        if not chat:
            raise no_plain_prompt(self.name)
        schema = self.schema(about or "an encyclopedia")
        return self.with_tools(Prompt(_RULES, "{prompt}", begins=self.begins), schema)

    def with_tools(self, prompt: Prompt, schema: Mapping[str, Any] | None = None) -> Prompt:
        """Return a chat prompt that tells of the tool too.

        Args:
            prompt: of anybody.
            schema: of the tool; None is ``schema()``.
        """
        tool = self.schema() if schema is None else schema
        text = (
            "You can call this tool, told as a JSON schema:\n"
            f"{json.dumps(tool['function'], ensure_ascii=False)}\n"
            f"To call it, write:\n{self.written('a few words')}\n"
            "What it finds is told to you in the next message."
        )
        return Prompt(prompt.system, prompt.user, True, (tool,), text, prompt.begins)

    def parse(self, turn: str) -> Action:
        """Return what a message asks for: its calls, or else its answer."""
        text, error = _without_thoughts(turn)
        found = self.calls(text)
        if found:
            queries, errors = tuple(c.query for c in found), tuple(c.error for c in found)
            return Search(queries, errors if any(errors) else ())
        if error is not None:
            return Malformed(error)
        boxed = last_boxed(text)
        if boxed is not None:
            return Answer(boxed)
        if self.boxed:
            return Malformed("no tool call and no \\boxed{} in the answer")
        tagged = answer_content(text)
        answer = (text if tagged is None else tagged).strip()
        return Answer(answer) if answer else Malformed("no tool call and no answer")

    def reply(self, found: Sequence[Found], note: str = "", escape: bool = True) -> str:
        """Return one block for each call, each between ``result_tags``."""
        texts = []
        for number, one in enumerate(found, 1):
            text = "\n\n".join(self._texts_of(one, note * (number == len(found)), escape)).strip()
            texts.append("{1}\n{0}\n{2}".format(text, *self.result_tags))
        return "\n".join(texts)

    def _texts_of(self, one: Found, note: str, escape: bool) -> list[str]:
        texts = [self.escape(p.contents) if escape else p.contents for p in one.passages]
        return texts + [text for text in (self.escape(one.note), note) if text]

    def pieces(self, reply: str) -> tuple[Piece, ...]:
        """Return the content of each message of the tool; what stands around it is the template's.

        A text without blocks is one message.
        """
        return tuple(Piece(text, role="tool") for text in self.results(reply))

    def results(self, reply: str) -> list[str]:
        """Return what a reply says to each call, in order; a text without blocks is one."""
        opening, closing = self.result_tags
        return all_tagged(reply, f"{opening}\n", f"\n{closing}") or [reply]

    def content(self, reply: str) -> str:
        """See Protocol."""
        return "\n\n".join(self.results(reply)).strip()

    def format_error(self, segments: Sequence[Segment]) -> str | None:
        r"""Say what is wrong with the form of a finished response; None if nothing is.

        Each message but the last must call the tool, and every call must be one that can be run.
        The last one must answer. Thoughts must be closed; ``result_tags`` are the
        environment's.
        """
        turns = [segment.text for segment in segments if segment.kind == "policy"]
        if not turns:
            return "the policy wrote nothing"
        for number, turn in enumerate(turns, 1):
            if tag := next((tag for tag in self.result_tags if tag in turn), None):
                return f"the policy wrote {tag}"
            error = _without_thoughts(turn)[1]
            if error is not None:
                return error
            if self.needs_thought and "</think>" not in turn:
                return "no <think> ... </think>"
            error = self._turn_error(self.parse(turn), final=number == len(turns))
            if error is not None:
                return error
        return None

    @staticmethod
    def _turn_error(action: Action, final: bool) -> str | None:
        if isinstance(action, Malformed):
            return action.reason
        if isinstance(action, Search):
            wrong = next((f"a wrong tool call: {e}" for e in action.problems if e), None)
            return wrong or ("the last message calls a tool" if final else None)
        if not final:
            return "a message before the last does not call a tool"
        return None if action.text.strip() else "the answer is empty"

    def parts(self, turn: str) -> list[Part]:
        """Cut a message into thoughts, calls (of kind "search") and text, or the answer."""
        text, error = _without_thoughts(turn)
        blocks = [(c.begin, c.end, c) for c in self.calls(text)]
        found: list[Part] = []
        place = 0
        for begin, end, call in [*blocks, (len(turn), len(turn), None)]:
            found += _thoughts_in(turn[place:begin])
            if call is not None:
                found.append(_call_part(turn[begin:end], call.closed))
            place = end
        last = found[-1] if found else None
        if not blocks and error is None and last and last.kind == "text" and last.text.strip():
            found[-1] = Part("answer", found[-1].text, tags=("", ""))
        return found

    def escape(self, text: str) -> str:
        """Return the text with the protocol's tags made unreadable (``<`` as ``&lt;``)."""
        return unreadable(text, self.tags)

    def search(self, *queries: str, thought: str = "", opened: str = "") -> str:
        """See Protocol."""
        calls = "\n".join(map(self.written, self.writable(queries)))
        return _thought(self.escape(thought), opened) + calls

    def answer(self, text: str, thought: str = "", opened: str = "") -> str:
        """See Protocol."""
        said = f"The answer is \\boxed{{{self.escape(text)}}}"
        return _thought(self.escape(thought), opened) + said

    def forges_reply(self, turn: str) -> bool:
        """See Protocol."""
        return any(tag in turn for tag in self.result_tags)

    def broken(self, turn: str, cut: bool = False) -> bool:
        """See Protocol."""
        error = _without_thoughts(turn)[1]
        if error is not None:
            return not (cut and error == "<think> is not closed")
        return not (cut or all(part.closed for part in self.parts(turn)))

    def call(self, begin: int, end: int, told: Any, arguments: str, closed: bool = True) -> Call:
        """Return the call that an object tells of.

        Args:
            begin: of its text in the message.
            end: of it.
            told: what was read: ``name``, and ``arguments`` under that name.
            arguments: what the dialect calls them.
            closed: whether its closing tag is there.
        """
        if not closed:
            return Call(begin, end, "", "the tool call is not closed", False)
        if not isinstance(told, dict) or "name" not in told:
            return Call(begin, end, "", f'a call must be an object with "name", got {_cut(told)}')
        if told["name"] != self.tool:
            error = f"there is no tool {_cut(told['name'])}; the only one is {self.tool}"
            return Call(begin, end, "", error)
        given = told.get(arguments)
        if isinstance(given, str):  # some models write the arguments as a string of JSON
            with suppress(ValueError, RecursionError):
                given = json.loads(given)
        if not isinstance(given, dict) or not isinstance(given.get("query"), str):
            return Call(begin, end, "", self.wrong_arguments(given, arguments))
        return Call(begin, end, given["query"].strip())

    def wrong_arguments(self, given: Any, arguments: str) -> str:
        """Say how the dialect calls the tool, and what is ``given`` in place of its arguments."""
        return f'{self.tool} takes {{"query": text}} as "{arguments}", got {_cut(given)}'


_RULES = (
    "Answer the user's question. Look things up with the search tool as often as you need, one "
    "fact at a time, and think about what you have read before you go on. When you know the "
    r"answer, say it without calling the tool, as short as it can be, inside \boxed{}."
)


def loaded(text: str) -> tuple[Any, str]:
    """Return what a text of JSON says, and why it cannot be read ("" if it can)."""
    try:
        return json.loads(text), ""
    except RecursionError:
        return None, "the call is no JSON: it is nested too deeply"
    except ValueError as error:
        return None, f"the call is no JSON: {error}"


def _cut(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deeply"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _thought(thought: str, opened: str) -> str:
    if opens_thought(opened):
        return f"{thought}\n</think>\n\n"
    return f"<think>\n{thought}\n</think>\n\n" if thought else ""


def _without_thoughts(turn: str) -> tuple[str, str | None]:
    """Return the turn with its thoughts blanked out, and what is wrong with their tags."""
    shown: list[str] = []
    begin, inside, error = 0, False, None
    for match in _THINK.finditer(turn):
        opens = match[0] == "<think>"
        if opens == inside:  # a second opening, or a closing of nothing
            error = error or ("<think> inside <think>" if opens else "</think> without <think>")
        text = turn[begin : match.end()]
        shown.append(" " * len(text) if inside else text[: -len(match[0])] + " " * len(match[0]))
        inside, begin = opens, match.end()
    rest = turn[begin:]
    shown.append(" " * len(rest) if inside else rest)
    return "".join(shown), error or ("<think> is not closed" if inside else None)


def _thoughts_in(text: str) -> list[Part]:
    """Cut a stretch without calls into thoughts and text."""
    opening, closing = "<think>", "</think>"
    found: list[Part] = []
    place = 0
    while place < len(text):
        begin = text.find(opening, place)
        if begin != place:
            found.append(Part("text", text[place:] if begin < 0 else text[place:begin]))
        if begin < 0:
            break
        inner = begin + len(opening)
        end = text.find(closing, inner)
        closed = end >= 0
        found.append(Part("think", text[inner:end] if closed else text[inner:], closed))
        place = end + len(closing) if closed else len(text)
    return found


def _call_part(text: str, closed: bool) -> Part:
    opening, closing = "<tool_call>", "</tool_call>"
    if not text.startswith(opening):
        return Part("search", text, closed, ("", ""))
    held = text.removeprefix(opening)
    return Part(
        "search", held.removesuffix(closing) if closed else held, closed, (opening, closing)
    )
