"""Prompts that tell a model the rules: the two of ReSearch, and prompts of your own.

The wording is that of ReSearch, kept byte for byte: repository Agent-RL/ReCall, branch re-search,
src/verl/utils/dataset/template.py, MIT License.
"""

from __future__ import annotations

from dataclasses import dataclass

_QUESTION = "{prompt}"


@dataclass(frozen=True)
class Prompt:
    """The text in front of the response.

    Args:
        system: the system message of a chat model; None for a model without a chat template.
        user: the user's text with ``{prompt}`` where the question goes.
    """

    system: str | None
    user: str

    def __post_init__(self) -> None:
        if _QUESTION not in self.user:
            raise ValueError(
                f"prompt must contain {_QUESTION} where the question goes, got {self.user[:80]!r}; "
                "write it there, or use 'base' or 'instruct'"
            )

    def text(self, question: str) -> str:
        """Return the prompt as one string; for a chat prompt, the texts of its messages."""
        user = self.user.replace(_QUESTION, question)
        return user if self.system is None else f"{self.system}\n\n{user}"

    def messages(self, question: str) -> list[dict[str, str]] | None:
        """Return the chat messages for the tokenizer's template; None for a base prompt."""
        if self.system is None:
            return None
        user = self.user.replace(_QUESTION, question)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


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


def get_prompt(prompt: str | Prompt) -> Prompt:
    """Return the prompt called ``base`` or ``instruct``, or one made of a text with ``{prompt}``.

    Raises:
        ValueError: the text does not say where the question goes.
    """
    if isinstance(prompt, Prompt):
        return prompt
    return {"base": BASE, "instruct": INSTRUCT}.get(prompt) or Prompt(None, prompt)
