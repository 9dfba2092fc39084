"""Prompts that tell a model the rules: the two of ReSearch, one for any corpus, and your own.

The wording of ``base`` and ``instruct`` is that of ReSearch, kept byte for byte: repository
Agent-RL/ReCall, branch re-search, src/verl/utils/dataset/template.py, MIT License. They say that
Wikipedia is searched; ``prompt_about`` says what your corpus is about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

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
                "write it there, or use 'base', 'instruct', {system, user}, {about} or a file"
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


_ABOUT = (
    "Answer the question step by step. You can look things up with a search tool over {about}. "
    "Write your reasoning inside <think> </think>. To look something up, write a short query "
    "inside <search> </search>; what the tool finds comes back inside <result> </result>. Read it, "
    "think again, and search as often as something is missing. When you know the answer, write it "
    r"inside <answer> </answer>, with nothing but the final answer inside \boxed{}. For example: "
    "<think> what I need to find first </think> <search> a query </search> <result> what was found "
    "</result> <think> what follows from it </think> <answer> The answer is "
    r"\boxed{the final answer} </answer>"
)


def prompt_about(about: str, chat: bool = True) -> Prompt:
    """Return a prompt that says what is searched.

    >>> "over the manuals of Acme." in prompt_about("the manuals of Acme").system
    True

    Args:
        about: what the documents are; it completes ``a search tool over ...``.
        chat: rules as a system message and the question as the user's; False is one text, for base
            models.

    Raises:
        ValueError: ``about`` is empty.
    """
    if not about.strip():
        raise ValueError("about must say what the documents are, got an empty text")
    rules = _ABOUT.replace("{about}", about.strip())
    return Prompt(rules, _QUESTION) if chat else Prompt(None, f"{rules}\n\nQuestion: {_QUESTION}\n")


PromptChoice: TypeAlias = str | Mapping[str, str | bool | None] | Prompt
"""``base`` or ``instruct``; a text with ``{prompt}``; ``{system, user}`` of a chat; ``{about}`` or
``{about, chat}``, see ``prompt_about``; a file of one of these; or a Prompt."""


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
        return _from_mapping({k: v for k, v in prompt.items() if v is not None})
    known = {"base": BASE, "instruct": INSTRUCT}.get(prompt)
    if known is None and _QUESTION not in prompt and _is_file(prompt):
        return get_prompt(_read(Path(prompt)))
    return known or Prompt(None, prompt)


def _from_mapping(given: Mapping[str, Any]) -> Prompt:
    allowed = {"about", "chat"} if "about" in given else {"system", "user"}
    if unknown := sorted(set(given) - allowed):
        raise ValueError(
            "a prompt in parts must have system and user, or about and chat; got "
            f"{unknown[0]!r} beside {', '.join(sorted(set(given) - {unknown[0]})) or 'nothing'}; "
            "leave it out, or set the others to null (--model.env.prompt.about null)"
        )
    if not given:
        raise ValueError("a prompt in parts must have system, user or about, got none of them")
    if "about" in given:
        return prompt_about(str(given["about"]), bool(given.get("chat", True)))
    return Prompt(given.get("system"), given.get("user") or _QUESTION, chat=True)


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # a text too long to be a name
        return False


def _read(file: Path) -> PromptChoice:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"a prompt's file must be text in UTF-8, got {file} ({error})") from error
    if file.suffix == ".json":
        found = json.loads(text)
    elif file.suffix in (".yaml", ".yml"):
        import yaml  # type: ignore[import-untyped]

        found = yaml.safe_load(text)
    else:
        return Prompt(None, text.rstrip("\n"))
    if not isinstance(found, str | Mapping):
        raise ValueError(
            f"{file} must hold a text, {{system, user}} or {{about}}, got {type(found).__name__}"
        )
    return found
