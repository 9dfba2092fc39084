"""Prompts that tell a model the rules: the two of ReSearch, and prompts of your own.

The wording is that of ReSearch, kept byte for byte: repository Agent-RL/ReCall, branch re-search,
src/verl/utils/dataset/template.py, MIT License.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

_QUESTION = "{prompt}"


@dataclass(frozen=True)
class Prompt:
    """The text in front of the response.

    Args:
        system: the system message of a chat; None for none.
        user: the user's text with ``{prompt}`` where the question goes.
        chat: messages for the tokenizer's chat template, not plain text; so it is with a system
            message.
    """

    system: str | None
    user: str
    chat: bool = False

    def __post_init__(self) -> None:
        if self.system is not None:
            object.__setattr__(self, "chat", True)
        if _QUESTION not in self.user:
            raise ValueError(
                f"prompt must contain {_QUESTION} where the question goes, got {self.user[:80]!r}; "
                "write it there, or use 'base', 'instruct', {system, user} or the path of a file"
            )

    def text(self, question: str) -> str:
        """Return the prompt as one string; for a chat prompt, the texts of its messages."""
        user = self.user.replace(_QUESTION, question)
        return user if self.system is None else f"{self.system}\n\n{user}"

    def messages(self, question: str) -> list[dict[str, str]] | None:
        """Return the chat messages for the tokenizer's template; None for a base prompt."""
        if not self.chat:
            return None
        user = {"role": "user", "content": self.user.replace(_QUESTION, question)}
        return [user] if self.system is None else [{"role": "system", "content": self.system}, user]


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


PromptChoice: TypeAlias = str | Mapping[str, str | None] | Prompt
"""``base`` or ``instruct``; a text with ``{prompt}``; ``{system, user}`` of a chat; a file of
either; or a Prompt."""


def get_prompt(prompt: PromptChoice) -> Prompt:
    """Return the prompt that is meant.

    >>> get_prompt({"system": "Answer briefly.", "user": "Q: {prompt}"}).messages("Who?")[1]
    {'role': 'user', 'content': 'Q: Who?'}

    Args:
        prompt: see PromptChoice. A mapping is a chat, also without a system message; without
            ``user`` the user says the question alone. A file is text, or YAML or JSON with the
            mapping.

    Raises:
        ValueError: it does not say where the question goes, or has other keys.
    """
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, Mapping):
        if unknown := sorted(set(prompt) - {"system", "user"}):
            raise ValueError(
                f"a chat prompt must have system and user, got {unknown[0]!r}; leave it out"
            )
        return Prompt(prompt.get("system"), prompt.get("user") or _QUESTION, chat=True)
    known = {"base": BASE, "instruct": INSTRUCT}.get(prompt)
    if known is None and _QUESTION not in prompt and _is_file(prompt):
        return get_prompt(_read(Path(prompt)))
    return known or Prompt(None, prompt)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a text too long to be a name
        return False


def _read(file: Path) -> PromptChoice:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        found = json.loads(text)
    elif file.suffix in (".yaml", ".yml"):
        import yaml  # type: ignore[import-untyped]

        found = yaml.safe_load(text)
    else:
        return Prompt(None, text.rstrip("\n"))
    if not isinstance(found, str | Mapping):
        raise ValueError(f"{file} must hold a text or {{system, user}}, got {type(found).__name__}")
    return found
