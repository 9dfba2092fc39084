"""Prompts of the methods: a system message, a user's message, and how the answer begins.

The presets are our own wording of what the methods' papers and FlashRAG
(https://github.com/RUC-NLPIR/FlashRAG, MIT) ask for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from research_rl.agents.methods.generators import ChatMessage, ModelInput
from research_rl.envs import Passage

_FIELD = re.compile(r"\{(question|passages|thoughts)\}")


@dataclass(frozen=True)
class Template:
    """A prompt with ``{question}``, ``{passages}`` and ``{thoughts}`` where those go.

    Args:
        user: the user's message.
        system: the system message; None for none.
        begin: what the model's own message begins with.
        chat: send messages; else one text, the parts with blank lines between them.
    """

    user: str
    system: str | None = None
    begin: str = ""
    chat: bool = True

    def __post_init__(self) -> None:
        if "{question}" not in self.user + (self.system or "") + self.begin:
            raise ValueError(
                f"a template must contain {{question}}, got {self.user[:80]!r}; write it where the "
                "question goes, or use 'chat' or 'base'"
            )

    def fill(self, question: str, passages: str = "", thoughts: str = "") -> ModelInput:
        """Return the input for one question; braces in what is filled in stay as they are."""
        given = {"question": question, "passages": passages, "thoughts": thoughts}
        parts = [
            _FIELD.sub(lambda m: given[m[1]], part or "")
            for part in (self.system, self.user, self.begin)
        ]
        if not self.chat:
            return "\n\n".join(part for part in parts[:2] if part) + parts[2]
        roles = ("system", "user", "assistant")
        messages: list[ChatMessage] = [
            {"role": role, "content": text}
            for role, text in zip(roles, parts, strict=True)
            if text.strip()
        ]
        return messages


TemplateChoice: TypeAlias = Literal["chat", "base"] | str | Template
"""``chat`` or ``base`` for the method's own wording, a text with ``{question}`` and so on, sent as
it is, or a Template."""


def get_template(choice: TemplateChoice, own: Template, reading: str = "") -> Template:
    """Return the template that is meant.

    Args:
        choice: what the user configured.
        own: the method's wording for chat models.
        reading: what the text of a base model goes on from, e.g. ``"\\nAnswer:"``.

    Raises:
        ValueError: a text that does not say where the question goes.
    """
    if isinstance(choice, Template):
        return choice
    if choice == "chat":
        return own
    if choice == "base":
        return Template(own.user, own.system, reading + own.begin, chat=False)
    return Template(choice, chat=False)


def show(passages: Iterable[Passage]) -> str:
    """Return passages as the baselines show them: numbered, title and text.

    >>> show([Passage("7", "Bakset\\nthe boss of Bakset is Domlor .")])
    'Doc 1 (Title: Bakset) the boss of Bakset is Domlor .'
    """
    lines = []
    for number, passage in enumerate(passages, 1):
        title, _, text = passage.contents.partition("\n")
        lines.append(f"Doc {number} (Title: {title.strip(chr(34))}) {text}")
    return "\n".join(lines)


CLOSED_BOOK = Template(
    "Question: {question}",
    "Answer the question from what you know. Give only the answer, in as few words as possible, "
    "and nothing else.",
)
"""Naive generation."""

OPEN_BOOK = Template(
    "Question: {question}",
    "Answer the question with the help of the documents below. Give only the answer, in as few "
    "words as possible, and nothing else.\n\nDocuments:\n{passages}",
)
"""Naive RAG."""

REASONED = Template(
    "Question: {question}",
    "Answer the question with the help of the documents below. Think step by step, in a few "
    'sentences that name the facts you use, and end with "So the answer is:" and the answer in as '
    "few words as possible.\n\nDocuments:\n{passages}",
)
"""Iter-RetGen: the thoughts are what the next search reads."""

INTERLEAVED = Template(
    "Documents:\n{passages}\n\nQuestion: {question}",
    "You answer questions that take several steps, with the help of documents. Write one thought "
    "at a time: a single sentence that states the next fact, as it stands in the documents or as "
    'far as you know it. When the facts suffice, write "So the answer is:" and the answer in as '
    "few words as possible. An example:\n\nDocuments:\n"
    "Doc 1 (Title: Bedřich Smetana) Bedřich Smetana was a Czech composer who wrote The Bartered "
    "Bride. He died in Prague on 12 May 1884.\n"
    "Doc 2 (Title: Prague) Prague is the capital of the Czech Republic. The Vltava runs through "
    "the city.\n\n"
    "Question: Which river runs through the city where the composer of The Bartered Bride died?\n"
    "Thoughts: The Bartered Bride was composed by Bedřich Smetana. Bedřich Smetana died in "
    "Prague. The river that runs through Prague is the Vltava. So the answer is: the Vltava.",
    begin="{thoughts}",
)
"""IRCoT, with one worked example."""
