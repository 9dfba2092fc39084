"""The chat template of a model: what it renders, where it ends a message, which day it says it is.

What a user sets (a file, arguments such as ``enable_thinking: false``, a date) is written into the
template's text when the tokenizer is loaded. So it is saved with the tokenizer, and whoever reads
that folder renders the same, servers of others included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from research_rl.agents.policy.notice import notice

Messages = Sequence[Mapping[str, str]]
"""Of a chat: ``role`` and ``content`` of each."""
Tools = Sequence[Mapping[str, Any]]
"""JSON schemas in OpenAI's layout."""
_MARK = "mark7of9"
"""Stands for a text whose place in the prompt is looked for."""
_ASKED = [{"role": "system", "content": _MARK}, {"role": "user", "content": "?"}]
_ANSWERED = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
_FAILURES = (TemplateError, TypeError)
"""What a template raises: by itself, or where it takes for granted what it is not given."""
_PROBE = 'a "quoted"\nline'
"""Shows whether a template writes what a tool says as it is."""
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class Glue(NamedTuple):
    """What a template writes between the texts of messages.

    Args:
        between: behind the assistant's text, between the tool's texts, and behind the last up to
            where the assistant begins again.
        as_json: whether the template writes a tool's text as JSON, escapes and all.
    """

    between: tuple[str, ...]
    as_json: bool


@dataclass
class ChatTemplateConfig:
    """How chat messages become a prompt; saved with the policy.

    Args:
        file: a Jinja template in place of the tokenizer's own.
        kwargs: what the template is given, {enable_thinking: false} for instance.
        date: what a template that prints today's date takes for it, as 2026-11-05; None is the
            day on which a run begins, which its config.yaml keeps.
    """

    file: str | None = None
    kwargs: dict[str, Any] | None = None
    date: str | None = None

    def apply(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the settings into the tokenizer's template.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the date is none, or there is no template to take the arguments.
        """
        if self.file is not None:
            if not Path(self.file).is_file():
                raise FileNotFoundError(
                    f"chat_template.file must be a Jinja file, got {self.file!r}: it is not there"
                )
            tokenizer.chat_template = Path(self.file).read_text(encoding="utf-8")
        own = getattr(tokenizer, "chat_template", None)
        if isinstance(own, dict):  # several, by name
            tokenizer.chat_template = {name: self._written_into(t) for name, t in own.items()}
        elif own:
            tokenizer.chat_template = self._written_into(own)
        elif self.kwargs:
            raise ValueError(
                f"chat_template.kwargs must meet a chat template, got {sorted(self.kwargs)} for "
                f"{tokenizer.name_or_path!r}, which has none; name one with chat_template.file"
            )

    def _written_into(self, template: str) -> str:
        template = self._dated(template)
        given = "".join(
            f"{{%- set {name} = {name} | default({value!r}) %}}"
            for name, value in (self.kwargs or {}).items()
        )
        # transformers drops the newline behind a block, so the template begins as it did
        return f"{given}\n{template}" if given else template

    def _dated(self, template: str) -> str:
        """The template with each call for today's date replaced by what it gives on that day."""
        day = _day(self.date)
        if "strftime_now(" not in template:
            return template
        if self.date is None:
            notice(
                f"the chat template prints today's date, which is taken to be {day} from here on; "
                "set policy.chat_template.date"
            )
        dated = _TODAY.sub(lambda call: repr(day.strftime(call[2])), template)
        if "strftime_now(" in dated:
            notice(
                "the chat template prints today's date in a format that it computes, which cannot "
                "be fixed: what is played on another day has another prompt"
            )
        return dated


def _day(text: str | None) -> date:
    try:
        return date.today() if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"chat_template.date must be a day such as 2026-11-05, got {text!r}"
        ) from error


class ChatTemplate:
    """Renders messages with a tokenizer's template, and knows its ways.

    Args:
        tokenizer: its template is read anew each time.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._glues: dict[tuple[int, str], Glue] = {}
        self._told: dict[str, bool] = {}

    def render(self, messages: Messages, tools: Tools = ()) -> str:
        """Return the prompt, up to where the model begins to write.

        Where the template has no role for a system message, its text begins the user's.

        Args:
            messages: of the chat.
            tools: JSON schemas for a template that takes tools, see ``takes_tools``.

        Raises:
            ValueError: there is no template, or it refuses these messages.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise ValueError(
                "a chat prompt must meet a tokenizer with a chat template, got "
                f"{self._tokenizer.name_or_path!r} without one; "
                "use prompt='base', an instruct model or policy.chat_template.file"
            )
        if messages and messages[0]["role"] == "system" and not self._takes_system:
            notice(
                f"the chat template of {self._tokenizer.name_or_path!r} has no role for a system "
                "message: its text begins the user's message instead"
            )
            messages = _folded(messages)
        try:
            return self._rendered(messages, True, tools)
        except _FAILURES as error:
            raise ValueError(
                f"the chat template of {self._tokenizer.name_or_path!r} must render messages of "
                f"{', '.join(m['role'] for m in messages)}, got {str(error) or repr(error)}; "
                "change the prompt, or set policy.chat_template"
            ) from error

    def takes_tools(self, tools: Tools) -> bool:
        """Return whether the template tells the model of its tools; some pass over them."""
        key = json.dumps([dict(tool) for tool in tools], sort_keys=True)
        if key not in self._told:
            try:
                text = self._rendered(_ASKED[1:], True, tools)
                self._told[key] = all(str(tool["function"]["name"]) in text for tool in tools)
            except (*_FAILURES, KeyError):
                self._told[key] = False
        return self._told[key]

    def glue(self, replies: int, role: str = "tool", tools: Tools = ()) -> Glue:
        """Return what the template writes around messages behind the assistant's.

        The template is asked with marks in place of the texts, and cut at the marks. What is
        sampled is never rendered again.

        Args:
            replies: how many messages follow.
            role: of them.
            tools: that the prompt told of.

        Raises:
            ValueError: the template cannot have these messages, or writes something else of the
                assistant's message once others follow.
        """
        if (replies, role) not in self._glues:
            self._glues[replies, role] = self._glue(replies, role, tools)
        return self._glues[replies, role]

    def _glue(self, replies: int, role: str, tools: Tools) -> Glue:
        marks = [f"{_MARK}t{number}e" for number in range(replies)]
        asked, said = _ANSWERED
        called = {**said, "content": f"{_MARK}e"}
        told = [_message(role, mark, number) for number, mark in enumerate(marks)]
        name = self._tokenizer.name_or_path
        try:
            alone = self._rendered([asked, called], False, tools).rpartition(f"{_MARK}e")[2]
            text = self._rendered([asked, called, *told], True, tools)
            probe = self._rendered([asked, called, {**told[0], "content": _PROBE}], True, tools)
        except _FAILURES as error:
            raise ValueError(
                f"the chat template of {name!r} must render messages of the role {role!r} "
                f"behind the assistant's, got {str(error) or repr(error)}; use a protocol of tags, "
                "or set policy.chat_template.file"
            ) from error
        cut = re.split("|".join(map(re.escape, [f"{_MARK}e", *marks])), text)
        between = cut[-replies - 1 :]
        if len(cut) < replies + 2 or not self._ends_alike(alone, between[0]):
            raise ValueError(
                f"the chat template of {name!r} must end the assistant's message as before and "
                f"show each message of the role {role!r} behind it, got {text[-200:]!r}; use a "
                "protocol of tags, or set policy.chat_template.file"
            )
        escapes = _PROBE not in probe
        if escapes and json.dumps(_PROBE, ensure_ascii=False)[1:-1] not in probe:
            raise ValueError(
                f"the chat template of {name!r} must show what a tool says as it is or as JSON, "
                f"got {probe[-200:]!r} for {_PROBE!r}; set policy.chat_template.file"
            )
        return Glue(tuple(between), escapes)

    def _ends_alike(self, alone: str, followed: str) -> bool:
        """Whether the assistant's message ends the same with and without others behind it.

        Where it is the last, some templates write an end of sequence too.
        """
        pairs = enumerate(zip(alone, followed, strict=False))
        common = alone[: next((i for i, (a, b) in pairs if a != b), len(alone))]
        known = (t.content for t in self._tokenizer.added_tokens_decoder.values())
        return common.startswith(alone.rstrip("\n")) or any(token in common for token in known)

    def end_of_turn(self, eos: frozenset[int]) -> frozenset[int]:
        """Return the token that ends an assistant's message and is no known end of sequence.

        Only a control token is taken; an ordinary one, or text of several, is told in the log.

        Args:
            eos: the ids that end a sequence as far as is known.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            return frozenset()
        try:
            text = self._rendered(_ANSWERED, False)
        except _FAILURES as error:
            notice(f"the chat template cannot be asked where an assistant's message ends: {error}")
            return frozenset()
        behind = text.rpartition(_MARK)[2].strip()
        known = self._tokenizer.added_tokens_decoder.items()
        tokens = sorted((len(t.content), i) for i, t in known if behind.startswith(t.content))
        found = tokens[-1][1] if tokens else None
        if not behind or found in eos:
            return frozenset()
        if found is not None and self._tokenizer.added_tokens_decoder[found].special:
            token = self._tokenizer.added_tokens_decoder[found].content
            notice(f"{token!r} ends a sequence too: it ends a message of the chat template")
            return frozenset({found})
        notice(
            f"the chat template ends a message with {behind[:40]!r}, which is no control token: "
            "sequences do not end there; if the model writes it, name it in sampling.stop"
        )
        return frozenset()

    @cached_property
    def _takes_system(self) -> bool:
        """Whether a system message reaches the prompt; some templates drop it without a word."""
        try:
            return _MARK in self._rendered(_ASKED, True)
        except _FAILURES:
            return False

    def _rendered(self, messages: Messages, begins: bool, tools: Tools = ()) -> str:
        rendered: Any = self._tokenizer.apply_chat_template(
            [dict(m) for m in messages],
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=begins,
        )
        return str(rendered)


def _message(role: str, text: str, number: int) -> dict[str, str]:
    """A message; one of a tool names the call that it answers, as some templates want it."""
    message = {"role": role, "content": text}
    answers = {"name": "search", "tool_call_id": f"call{number:05d}"}  # Mistral wants 9 characters
    return message | answers if role == "tool" else message


def _folded(messages: Messages) -> list[Mapping[str, str]]:
    """The messages without their first, whose text begins the next one of the user."""
    system, *others = messages
    if not others or others[0]["role"] != "user":
        return [{"role": "user", "content": system["content"]}, *others]
    content = f"{system['content']}\n\n{others[0]['content']}"
    return [{**others[0], "content": content}, *others[1:]]
