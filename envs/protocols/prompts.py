"""Prompts that tell a model the rules: the two of ReSearch, one for any corpus, and your own.

The wording of ``base`` and ``instruct`` is that of ReSearch, kept byte for byte: repository
Agent-RL/ReCall, branch re-search, src/verl/utils/dataset/template.py, MIT License. They say that
Wikipedia is searched; ``prompt_about`` says what your corpus is about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

_QUESTION = "{prompt}"
_OPENED = re.compile(r"<think>\s*(?:</think>\s*)?\Z")


class Opened(NamedTuple):
    """What stands in front of the policy's own text and belongs to its response.

    Some prompts and chat templates end in ``<think>``, others open a thought and close it at once.

    Args:
        first: in front of the first turn.
        later: in front of each later turn, where a turn is a chat message of its own.
    """

    first: str = ""
    later: str = ""

    def before(self, turn: int, keeps_eos: bool) -> str:
        """Return what was opened in front of a turn.

        Args:
            turn: its number, from 0.
            keeps_eos: whether each turn is a message of its own.
        """
        if turn == 0:
            return self.first
        return self.later if keeps_eos else ""


def opened_by(prompt: str) -> str:
    r"""Return the thought that a text opens at its very end, closed or not; "" for none.

    >>> opened_by("Assistant: <think>\n")
    '<think>\n'
    """
    found = _OPENED.search(prompt)
    return found[0] if found else ""


@dataclass(frozen=True)
class Prompt:
    """The text in front of the response.

    Args:
        system: the system message of a chat; None for none.
        user: the user's text with ``{prompt}`` where the question goes.
        chat: messages for the tokenizer's chat template, not plain text; so it is with a system
            message.
        tools: what the model may call, as JSON schemas of OpenAI's layout; for a chat template
            that takes tools.
        tools_text: says the same in words, for a chat template that takes none.
        begins: what the response begins with; it is given, not sampled.
    """

    system: str | None
    user: str
    chat: bool = False
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    tools_text: str = ""
    begins: str = ""

    def __post_init__(self) -> None:
        if self.system is not None:
            object.__setattr__(self, "chat", True)
        if _QUESTION not in self.user:
            raise ValueError(
                f"prompt must contain {_QUESTION} where the question goes, got {self.user[:80]!r}; "
                "write it there, or use 'base', 'instruct', {system, user}, {about} or a file"
            )

    def text(self, question: str) -> str:
        """Return the prompt as one string; for a chat prompt, the texts of its messages."""
        system = self._system(tools_in_text=True)
        user = self.user.replace(_QUESTION, question)
        return (user if system is None else f"{system}\n\n{user}") + self.begins

    def messages(self, question: str, tools_in_text: bool = False) -> list[dict[str, str]] | None:
        """Return the chat messages for the tokenizer's template; None for a base prompt.

        Args:
            question: what is asked.
            tools_in_text: the template takes no tools, so the system message tells of them.
        """
        if not self.chat:
            return None
        system = self._system(tools_in_text)
        user = {"role": "user", "content": self.user.replace(_QUESTION, question)}
        return [user] if system is None else [{"role": "system", "content": system}, user]

    @property
    def opened(self) -> str:
        """The thought that the prompt opens at its end, as far as that is known without a chat
        template."""
        if self.chat:
            return self.begins
        return opened_by(self.user.rpartition(_QUESTION)[2]) + self.begins

    def _system(self, tools_in_text: bool) -> str | None:
        told = [text for text in (self.system, self.tools_text * tools_in_text) if text]
        return "\n\n".join(told) or self.system


BASE = Prompt(
    None,
    "A conversation between User and Assistant. The user asks a question, and the assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then "
    "provides the user with the answer. During thinking, the assistant can invoke the wikipedia "
    "search tool to search for fact information about specific topics if needed. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags "
    "respectively, and the search query and result are enclosed within <search> </search> and "
    "<result> </result> tags respectively. For example, <think> This is the reasoning process. "
    "</think> <search> search query here </search> <result> search result here </result> <think> "
    r"This is the reasoning process. </think> <answer> The final answer is \[ \boxed{answer "
    r"here} \] </answer>. In the last part of the answer, the final exact answer is enclosed "
    r"within \boxed{} with latex format. User: {prompt}. Assistant:",
)
"""For base models: plain text, no chat template."""

INSTRUCT = Prompt(
    "You are a helpful assistant that can solve the given question step by step with the help of "
    "the wikipedia search tool. Given a question, you need to first think about the reasoning "
    "process in the mind and then provide the answer. During thinking, you can invoke the "
    "wikipedia search tool to search for fact information about specific topics if needed. The "
    "reasoning process and answer are enclosed within <think> </think> and <answer> </answer> "
    "tags respectively, and the search query and result are enclosed within <search> </search> "
    "and <result> </result> tags respectively. For example, <think> This is the reasoning "
    "process. </think> <search> search query here </search> <result> search result here "
    r"</result> <think> This is the reasoning process. </think> <answer> The final answer is \[ "
    r"\boxed{answer here} \] </answer>. In the last part of the answer, the final exact answer "
    r"is enclosed within \boxed{} with latex format.",
    _QUESTION,
)
"""For instruction-tuned models: a system message, the question as the user's."""


def rules_prompt(rules: str, chat: bool, begins: str = "") -> Prompt:
    """Return a prompt that tells the rules: as a system message, or in front of the question.

    Args:
        rules: in words.
        chat: messages, not plain text.
        begins: what the response begins with.
    """
    if chat:
        return Prompt(rules, _QUESTION, begins=begins)
    return Prompt(None, f"{rules}\n\nQuestion: {_QUESTION}\n", begins=begins)


def no_plain_prompt(protocol: str) -> ValueError:
    """Return the error for plain text in front of a protocol whose replies are chat messages.

    Args:
        protocol: its name.
    """
    return ValueError(
        f"the protocol {protocol!r} must have a chat prompt, got plain text; set chat to true, or "
        "use a protocol whose replies stand in the same message, such as research"
    )


def opens_thought(opened: str, tag: str = "<think>") -> bool:
    """Return whether what a prompt opened is a thought that the policy is in.

    Args:
        opened: by the prompt.
        tag: that stands in front of a thought.
    """
    return opened.rstrip().endswith(tag)


PromptChoice: TypeAlias = str | Mapping[str, str | bool | None] | Prompt
"""``base`` or ``instruct``; a text with ``{prompt}``; ``{system, user, begins, tools}`` of a chat;
``{about}`` or ``{about, chat}``; a file of one of these; or a Prompt. See ``get_prompt``."""


class Parts(NamedTuple):
    """What a prompt in parts says.

    Args:
        prompt: the prompt, where it is given in full.
        about: what the documents are, where it is not.
        chat: messages or plain text; None where that is not said.
        begins: what the response begins with; None where that is not said.
        tools: whether the model is told of its tools beside the prompt.
    """

    prompt: Prompt | None
    about: str | None = None
    chat: bool | None = None
    begins: str | None = None
    tools: bool = True


def prompt_parts(choice: Mapping[str, Any]) -> Parts:
    """Read a prompt in parts; None is a part that is not there.

    Raises:
        ValueError: parts that nothing reads, or that do not go together.
    """
    given = {name: part for name, part in choice.items() if part is not None}
    allowed = {"about", "chat"} if "about" in given else {"system", "user", "begins", "tools"}
    if unknown := sorted(set(given) - allowed):
        raise ValueError(
            "a prompt in parts must have system, user, begins and tools, or about and chat; got "
            f"{unknown[0]!r} beside {', '.join(sorted(set(given) - {unknown[0]})) or 'nothing'}; "
            "leave it out, or set the others to null (--model.env.prompt.about null)"
        )
    if not given:
        raise ValueError("a prompt in parts must have system, user or about, got none of them")
    kinds = {"chat": bool, "tools": bool}
    for name, part in given.items():
        kind = kinds.get(name, str)
        if not isinstance(part, kind):
            raise ValueError(
                f"{name} of a prompt must be {'true or false' if kind is bool else 'a text'}, got "
                f"{part!r}"
            )
    if "about" in given:
        about = str(given["about"]).strip()
        if not about:
            raise ValueError("about must say what the documents are, got an empty text")
        return Parts(None, about, bool(given.get("chat", True)))
    prompt = Prompt(given.get("system"), given.get("user") or _QUESTION, chat=True)
    return Parts(prompt, begins=given.get("begins"), tools=bool(given.get("tools", True)))


def prompt_file(name: str) -> Path | None:
    """Return the file of this name, None where it is a text or a name of something else."""
    if _QUESTION in name:
        return None
    try:
        return Path(name) if Path(name).is_file() else None
    except OSError:  # a text too long to be a name
        return None


def read_prompt(file: Path) -> PromptChoice:
    """Return what a file says: a text, or YAML or JSON with the parts.

    Raises:
        ValueError: it holds something else.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"a prompt's file must be text in UTF-8, got {file} ({error})") from error
    if file.suffix in (".json", ".yaml", ".yml"):
        found = _parsed(file, text)
    else:
        return Prompt(None, text.rstrip("\n"))
    if not isinstance(found, str | Mapping):
        raise ValueError(
            f"{file} must hold a text, {{system, user}} or {{about}}, got {type(found).__name__}"
        )
    return found


def _parsed(file: Path, text: str) -> Any:
    import yaml  # type: ignore[import-untyped]

    try:
        return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file} must be {file.suffix[1:].upper()}, got {error}") from error
