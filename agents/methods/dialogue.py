"""Dialogues: what was said in an episode, as a model on a server is shown it.

In some protocols the whole response is one message, with which the model goes on after each
result. In others a turn is a message, and a result is another: of the tool, or of the user.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from typing import Any

from research_rl.agents.methods.generators import ChatMessage, Generation, ModelInput, ToolCall
from research_rl.agents.policy import ChatTemplate, Tools
from research_rl.envs.protocols import CallProtocol, Piece, Protocol

_NOT_A_NAME = re.compile(r"[^\w-]", re.ASCII)


def turn_text(generation: Generation, protocol: Protocol, opened: str = "") -> str:
    """Return a turn as the model wrote it, whatever the server has moved out of its text.

    A thought is put back in front and tool calls are written behind, in the protocol's own form. A
    thought whose opening tag the server's template wrote gets that tag; a stop string that was cut
    off is put back.

    Args:
        generation: what the server gave.
        protocol: of the episode.
        opened: what is known to stand in front of the turn already.
    """
    opening, closing = protocol.thought
    text, thought = generation.text, generation.reasoning
    if thought:
        ended = bool(text.strip() or generation.calls or generation.finish == "eos")
        text = f"{opening}{thought}{closing * ended}{text}"
    if opened.rstrip().endswith(opening):
        if text.lstrip().startswith(opening):
            text = text.lstrip().removeprefix(opening)
    elif closing in text and opening not in text.partition(closing)[0]:
        # where thoughts hold searches, one may have begun in an earlier turn
        text = text if getattr(protocol, "searches_in_thought", False) else opening + text
    if generation.finish == "eos" and not generation.calls:
        text = protocol.unclosed(text)
    if generation.calls and isinstance(protocol, CallProtocol):
        return protocol.message(text, [(call.name, call.arguments) for call in generation.calls])
    return text


class Dialogue(ABC):
    """What was said so far, and what the model is shown of it.

    Args:
        prompt: in front of all.
    """

    def __init__(self, prompt: ModelInput) -> None:
        self._prompt = prompt

    @property
    @abstractmethod
    def shown(self) -> ModelInput:
        """What the model goes on with."""

    @abstractmethod
    def take(self, turn: str, generation: Generation) -> None:
        """Add a turn.

        Args:
            turn: its text, behind what was opened of it.
            generation: what it was made of.
        """

    @abstractmethod
    def give(self, reply: str) -> None:
        """Add what the environment says."""


class OneMessage(Dialogue):
    """The response is one message, or one text, with which the model goes on.

    Args:
        prompt: in front of the response.
        begins: what the response begins with, beside what the prompt holds.
    """

    def __init__(self, prompt: ModelInput, begins: str = "") -> None:
        super().__init__(prompt)
        self._said = begins

    @property
    def shown(self) -> ModelInput:
        """See Dialogue."""
        if isinstance(self._prompt, str):
            return self._prompt + self._said
        begun = {"role": "assistant", "content": self._said}
        return [*self._prompt, begun] if self._said else self._prompt

    def take(self, turn: str, generation: Generation) -> None:
        """See Dialogue."""
        self._said += turn

    def give(self, reply: str) -> None:
        """See Dialogue."""
        self._said += reply


class SeparateMessages(Dialogue):
    """Each turn is a message of the assistant, each reply one or more messages behind it.

    Args:
        prompt: the chat up to the first turn.
        protocol: cuts replies into messages.
        first: what the first turn begins with.
        later: what later ones begin with.
        roles: whether replies keep their roles; else each is one message of the user.
    """

    def __init__(
        self,
        prompt: Seq[ChatMessage],
        protocol: Protocol,
        first: str = "",
        later: str = "",
        roles: bool = True,
    ) -> None:
        super().__init__(list(prompt))
        self._messages: list[ChatMessage] = list(prompt)
        self._protocol, self._roles = protocol, roles
        self._begins, self._later = first, later
        self._ids: list[str] = []

    @property
    def shown(self) -> ModelInput:
        """See Dialogue."""
        if not self._begins:
            return list(self._messages)
        return [*self._messages, {"role": "assistant", "content": self._begins}]

    def take(self, turn: str, generation: Generation) -> None:
        """See Dialogue; tool calls that the server has read go back as such."""
        message: ChatMessage = {"role": "assistant", "content": self._begins + turn}
        self._begins = self._later
        self._ids = []
        if generation.calls:
            place = len(self._messages)
            ids = [c.id or f"call_{place}_{n}" for n, c in enumerate(generation.calls)]
            self._ids = ids
            message["content"] = turn_text(_without_calls(generation), self._protocol)
            called = zip(ids, generation.calls, strict=True)
            message["tool_calls"] = [_sent_back(i, call) for i, call in called]
        self._messages.append(message)

    def give(self, reply: str) -> None:
        """See Dialogue; each tool call is answered, as servers demand."""
        if self._ids and isinstance(self._protocol, CallProtocol):
            told = self._protocol.results(reply)
            most = self._protocol.max_queries
            many = "one call" if most == 1 else f"{most} calls"
            told += [f"not run: a message may hold {many}"] * (len(self._ids) - len(told))
            self._messages += [
                {"role": "tool", "content": text, "tool_call_id": called}
                for called, text in zip(self._ids, told, strict=False)
            ]
            return
        pieces = self._protocol.pieces(reply) if self._roles else (Piece(reply, role="user"),)
        self._messages += [{"role": p.role or "user", "content": p.text} for p in pieces]


def _without_calls(generation: Generation) -> Generation:
    return Generation(generation.text, "eos", reasoning=generation.reasoning)


def _sent_back(call_id: str, call: ToolCall) -> dict[str, Any]:
    """A call as a server can read it again: one that is no JSON would make it refuse the chat."""
    try:
        told = json.loads(call.arguments)
    except (ValueError, RecursionError):
        told = None
    arguments = call.arguments if isinstance(told, dict) else json.dumps({"text": call.arguments})
    name = _NOT_A_NAME.sub("_", call.name)[:64] or "unknown"
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def rendered(template: ChatTemplate, messages: Seq[ChatMessage], tools: Tools = ()) -> str:
    """Return a chat as the text that the model reads, up to where it goes on.

    The prompt is rendered by the model's template; behind it stands what the model wrote, as it
    wrote it, with the template's glue around the replies.

    Args:
        template: the model's.
        messages: the last one may be the assistant's, which has begun.
        tools: for a template that takes tools.

    Raises:
        ValueError: the template cannot have these messages.
    """
    turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    text = template.render(messages[: turns[0]] if turns else messages, tools)
    for begin, end in zip(turns, [*turns, len(messages)][1:], strict=True):
        replies = messages[begin + 1 : end]
        text += str(messages[begin]["content"])
        if replies:
            glue = template.glue(len(replies), replies[0]["role"], tools)
            told = [str(reply["content"]) for reply in replies]
            told = [json.dumps(t, ensure_ascii=False)[1:-1] if glue.as_json else t for t in told]
            text += glue.between[0]
            text += "".join(t + b for t, b in zip(told, glue.between[1:], strict=True))
    return text
