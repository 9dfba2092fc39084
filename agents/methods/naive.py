"""The two plain baselines: answering from memory, and answering behind one search."""

from __future__ import annotations

from research_rl.agents.methods.answers import extract_answer
from research_rl.agents.methods.baselines import Baseline, Work
from research_rl.agents.methods.generators import Generator
from research_rl.agents.methods.templates import (
    CLOSED_BOOK,
    OPEN_BOOK,
    TemplateChoice,
    get_template,
)
from research_rl.agents.types import SamplingParams
from research_rl.envs import Retriever


class NaiveGeneration(Baseline):
    """Answers from the model's memory alone; also the closed-book control of the others.

    Args:
        generator: writes.
        retriever: not asked; it is here so that every method is made alike.
        prompt: ``chat``, ``base``, a text with ``{question}``, or a Template.
        faithful: take the whole text for the answer, as the paper's evaluation did.
        max_tokens: most tokens of the answer.
        temperature: 0 is greedy.
        seed: of sampled texts.
    """

    def __init__(
        self,
        generator: Generator,
        retriever: Retriever | None = None,
        prompt: TemplateChoice = "chat",
        faithful: bool = False,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(generator, None, 1, sampling(max_tokens, temperature), seed)
        self.template = get_template(prompt, CLOSED_BOOK, "\nAnswer:")
        self.faithful = faithful

    def _run(self, work: list[Work]) -> None:
        inputs = [self.template.fill(one.question.text) for one in work]
        for one, text in self._write(work, inputs, "answer"):
            one.end(text.text.strip() if self.faithful else extract_answer(text.text), text)


class NaiveRAG(Baseline):
    """Searches for the question once and answers with what was found.

    Args:
        generator: writes.
        retriever: searches.
        top_k: passages shown.
        prompt: ``chat``, ``base``, a text with ``{question}`` and ``{passages}``, or a Template.
        faithful: take the whole text for the answer, as the paper's evaluation did.
        max_tokens: most tokens of the answer.
        temperature: 0 is greedy.
        seed: of sampled texts.
    """

    def __init__(
        self,
        generator: Generator,
        retriever: Retriever,
        top_k: int = 5,
        prompt: TemplateChoice = "chat",
        faithful: bool = False,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(generator, retriever, top_k, sampling(max_tokens, temperature), seed)
        self.template = get_template(prompt, OPEN_BOOK, "\nAnswer:")
        self.faithful = faithful

    def _run(self, work: list[Work]) -> None:
        self._search(work, [one.question.text for one in work])
        inputs = [
            self.template.fill(one.question.text, self._show(one, one.passages[-1])) for one in work
        ]
        for one, text in self._write(work, inputs, "answer"):
            one.end(text.text.strip() if self.faithful else extract_answer(text.text), text)


def sampling(max_tokens: int, temperature: float, stop: tuple[str, ...] = ()) -> SamplingParams:
    """Return how a baseline samples one text."""
    return SamplingParams(max_response_tokens=max_tokens, temperature=temperature, stop=stop)
